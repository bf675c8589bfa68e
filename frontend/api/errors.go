package api

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"starling"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

// Status is the HTTP status of an error; it is the only place that decides one.
func Status(err error) int {
	switch starling.KindOf(err) {
	case starling.Invalid:
		return http.StatusBadRequest
	case starling.NotFound:
		return http.StatusNotFound
	case starling.Overloaded:
		return http.StatusTooManyRequests
	case starling.Denied:
		if starling.ReasonOf(err) == auth.ReasonKey {
			return http.StatusUnauthorized
		}
		return http.StatusForbidden
	case starling.Conflict:
		return http.StatusConflict
	case starling.TooLarge:
		return http.StatusRequestEntityTooLarge
	case starling.Timeout:
		return http.StatusGatewayTimeout
	case starling.Failed:
		return http.StatusBadGateway
	case starling.Moved, starling.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Body is what a client is told of an error: a bug or a broken machine shows only a request id to ask for.
func Body(err error, request string) protocol.ErrorBody {
	b := protocol.ErrorBody{Kind: starling.KindOf(err).String(), Reason: starling.ReasonOf(err), RequestID: request}
	var e *starling.Error
	if errors.As(err, &e) && e.Kind != starling.Internal {
		b.Message = e.Error()
	} else {
		b.Message = "something broke on our side; the log of the frontend has it under this request id"
		b.Reason = ""
	}
	return b
}

// RetryAfter is the value of Retry-After in whole seconds, "" when waiting cannot help.
func RetryAfter(err error) string {
	k := starling.KindOf(err)
	if k != starling.Overloaded && k != starling.Unavailable && k != starling.Moved {
		return ""
	}
	var e *starling.Error
	s := time.Second
	if errors.As(err, &e) && e.After > s {
		s = e.After
	}
	return strconv.Itoa(int((s + time.Second - 1) / time.Second))
}

// WriteError makes err the answer of a request. Together with the refusals that huma writes in the same form
// it is the only place where an error becomes an HTTP answer; errors of our own making are logged here.
func WriteError(w http.ResponseWriter, log *slog.Logger, request string, err error) {
	if starling.KindOf(err) == starling.Internal {
		log.Error("request failed", "request", request, "error", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if request != "" {
		h.Set(protocol.HeaderRequestID, request)
	}
	if s := RetryAfter(err); s != "" {
		h.Set("Retry-After", s)
	}
	status := Status(err)
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(Body(err, request))
}

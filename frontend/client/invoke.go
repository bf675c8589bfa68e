package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// Invoke calls a function over HTTP and reads its whole answer. A function that failed is a Result whose
// Err is not nil; an error means that the call brought no answer of the function.
func (c *HTTP) Invoke(ctx context.Context, call Call) (*Result, error) {
	res, err := c.stream(ctx, call)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, "invoke function", "the answer broke off; the function may have run: %w", err).With(ReasonNoAnswer)
	}
	return result(res, body), nil
}

// Stream calls a function over HTTP and copies its answer to w as it comes. The Result carries no payload,
// except the error document of a function that failed before it answered.
func (c *HTTP) Stream(ctx context.Context, call Call, w io.Writer) (*Result, error) {
	res, err := c.stream(ctx, call)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.Header.Get(protocol.HeaderFunctionError) != "" {
		body, err := io.ReadAll(io.LimitReader(res.Body, starling.PayloadMax))
		if err != nil {
			return nil, starling.Errorf(starling.Unavailable, "invoke function", "the answer broke off; the function may have run: %w", err).With(ReasonNoAnswer)
		}
		return result(res, body), nil
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return nil, starling.Errorf(starling.Unavailable, "invoke function", "the answer broke off; the function may have run: %w", err).With(ReasonNoAnswer)
	}
	return result(res, nil), nil
}

// stream sends the call; every answer that is not a refusal comes back open.
func (c *HTTP) stream(ctx context.Context, call Call) (*http.Response, error) {
	path := function(call.Function) + "/invocations"
	if call.Version != starling.Latest {
		path += "?version=" + call.Version.String()
	}
	req, err := c.request(ctx, http.MethodPost, path, bytes.NewReader(call.Payload))
	if err != nil {
		return nil, err
	}
	if call.ContentType == "" {
		call.ContentType = "application/json"
	}
	req.Header.Set("Content-Type", call.ContentType)
	if call.Request != (starling.RequestID{}) {
		req.Header.Set(protocol.HeaderRequestID, call.Request.String())
	}
	if call.Tail {
		req.Header.Set(protocol.HeaderLogTail, "1")
	}
	res, err := c.send(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 && res.Header.Get(protocol.HeaderFunctionError) == "" {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	return res, nil
}

// result reads headers and, of a streamed answer, trailers; the body must be read to its end before.
func result(res *http.Response, body []byte) *Result {
	get := func(name string) string {
		if v := res.Trailer.Get(name); v != "" {
			return v
		}
		return res.Header.Get(name)
	}
	r := &Result{Version: get(protocol.HeaderVersion), ErrorType: get(protocol.HeaderErrorType),
		ContentType: res.Header.Get("Content-Type"), Payload: body, Timing: timing(res.Header, res.Trailer)}
	r.Request, _ = starling.ParseRequestID(get(protocol.HeaderRequestID))
	switch get(protocol.HeaderFunctionError) {
	case "Handled":
		r.Status = starling.Handled
	case "Unhandled":
		r.Status = starling.Unhandled
	}
	r.LogTail, _ = base64.StdEncoding.DecodeString(get(protocol.HeaderLogResult))
	return r
}

// timing reads Server-Timing: "queue;dur=0.1, run;dur=12.5".
func timing(headers ...http.Header) map[string]time.Duration {
	out := map[string]time.Duration{}
	for _, h := range headers {
		for _, line := range h.Values(protocol.HeaderServerTiming) {
			for part := range strings.SplitSeq(line, ",") {
				name, dur, ok := strings.Cut(strings.TrimSpace(part), ";dur=")
				ms, err := strconv.ParseFloat(dur, 64)
				if ok && err == nil {
					out[name] = time.Duration(ms * float64(time.Millisecond))
				}
			}
		}
	}
	return out
}

// Logs yields the lines that q selects, oldest first, until they end, ctx ends (with Follow) or the caller
// stops. An error is the last thing it yields.
func (c *HTTP) Logs(ctx context.Context, name starling.FunctionName, q protocol.LogQuery) iter.Seq2[protocol.LogRecord, error] {
	return func(yield func(protocol.LogRecord, error) bool) {
		req, err := c.request(ctx, http.MethodGet, function(name)+"/logs?"+logValues(q).Encode(), nil)
		if err != nil {
			yield(protocol.LogRecord{}, err)
			return
		}
		res, err := c.send(req)
		if err != nil {
			yield(protocol.LogRecord{}, err)
			return
		}
		defer res.Body.Close()
		if res.StatusCode >= 300 {
			yield(protocol.LogRecord{}, refusal(res))
			return
		}
		sc := bufio.NewScanner(res.Body)
		sc.Buffer(nil, 8*starling.LogLineMax) // JSON escapes make a line longer, up to six times
		for sc.Scan() {
			var rec protocol.LogRecord
			if len(sc.Bytes()) == 0 {
				continue // a heartbeat of a quiet follow
			}
			if err := json.Unmarshal(sc.Bytes(), &rec); err != nil {
				yield(rec, starling.Errorf(starling.Internal, "read logs", "the frontend sent a line that is no log record: %w", err))
				return
			}
			if !yield(rec, nil) {
				return
			}
		}
		if err := sc.Err(); err != nil && ctx.Err() == nil {
			yield(protocol.LogRecord{}, starling.Errorf(starling.Unavailable, "read logs", "the connection broke: %w", err))
		}
	}
}

func logValues(q protocol.LogQuery) url.Values {
	v := url.Values{}
	if !q.All {
		v.Set("version", q.Version.String())
	}
	if q.Request != (starling.RequestID{}) {
		v.Set("request", q.Request.String())
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Follow {
		v.Set("follow", "true")
	}
	return v
}

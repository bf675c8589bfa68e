package api

import (
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/cluster"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

const (
	uploadTime  = 10 * time.Minute // for a whole upload
	followWrite = 30 * time.Second // for a reader to take what was written
	followBeat  = 10 * time.Second // between empty lines on a quiet follow, so that a dead reader is noticed
)

func (a *api) code() {
	a.handle(&huma.Operation{OperationID: "put-code", Method: http.MethodPost, Path: "/v1/code", Summary: "Upload a zip", Tags: []string{"functions"},
		Description: "The body is the zip itself, at most 50 MiB. The answer's hash names it when a function is created or updated. Uploading it again is harmless.",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/zip": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}},
		Responses: map[string]*huma.Response{"201": {Description: "Kept", Content: map[string]*huma.MediaType{
			"application/json": {Schema: a.huma.OpenAPI().Components.Schemas.Schema(typeOf[protocol.Code](), true, "Code")}}}},
	}, a.putCode)
}

func (a *api) putCode(w http.ResponseWriter, r *http.Request, p auth.Principal) error {
	if r.ContentLength > starling.CodeZipMax {
		return starling.Errorf(starling.TooLarge, "upload code", "the zip has %d bytes: use at most %d", r.ContentLength, starling.CodeZipMax).With("PackageTooLarge")
	}
	if _, err := a.read(r.Context(), cluster.Query{What: cluster.QueryAccount, Account: p.Account}); err != nil {
		return err // an admin may act for any name; what nobody owns must not be kept
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(uploadTime))
	rc.SetWriteDeadline(time.Now().Add(uploadTime + time.Minute))
	body := http.MaxBytesReader(w, r.Body, starling.CodeZipMax+1) // the store counts itself and says so in its words
	hash, size, err := a.Code.Put(r.Context(), p.Account, body)
	if err != nil {
		return err
	}
	if want := r.Header.Get(protocol.HeaderCodeHash); want != "" && subtle.ConstantTimeCompare([]byte(want), []byte(hash)) != 1 {
		return starling.Errorf(starling.Invalid, "upload code", "the zip arrived with hash %s, not %s: send it again", hash, want).With("HashMismatch")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	return json.NewEncoder(w).Encode(protocol.Code{Hash: hash, Size: size})
}

func (a *api) logs() {
	query := func(name, typ, doc string) *huma.Param {
		return &huma.Param{Name: name, In: "query", Description: doc, Schema: &huma.Schema{Type: typ}}
	}
	a.handle(&huma.Operation{OperationID: "read-logs", Method: http.MethodGet, Path: "/v1/functions/{name}/logs", Summary: "Read output of a function", Tags: []string{"functions"},
		Description: "One JSON record a line, oldest first. With follow=true lines come as they are written; an empty line is a sign of life.",
		Parameters: []*huma.Param{{Name: "name", In: "path", Required: true, Schema: &huma.Schema{Type: "string"}},
			query("version", "string", "latest or a number; all versions when absent"), query("request", "string", "lines of one call"),
			query("since", "string", "RFC 3339 time"), query("limit", "integer", "newest lines to begin with, 1-10000; 0 means 100"), query("follow", "boolean", "keep going")},
		Responses: map[string]*huma.Response{"200": {Description: "Lines", Content: map[string]*huma.MediaType{
			"application/x-ndjson": {Schema: a.huma.OpenAPI().Components.Schemas.Schema(typeOf[protocol.LogRecord](), true, "LogRecord")}}}},
	}, a.readLogs)
}

func logQuery(r *http.Request) (q protocol.LogQuery, err error) {
	const op = "read logs"
	v := r.URL.Query()
	if q.All = !v.Has("version"); !q.All {
		if q.Version, err = starling.ParseVersionNumber(v.Get("version")); err != nil {
			return q, err
		}
	}
	if s := v.Get("request"); s != "" {
		id, ok := starling.ParseRequestID(s)
		if !ok {
			return q, starling.Errorf(starling.Invalid, op, "%q is no request id", s)
		}
		q.Request = id
	}
	if s := v.Get("since"); s != "" {
		if q.Since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return q, starling.Errorf(starling.Invalid, op, "since %q: use a time like 2026-01-02T15:04:05Z", s)
		}
	}
	if s := v.Get("limit"); s != "" {
		if q.Limit, err = strconv.Atoi(s); err != nil || q.Limit < 0 || q.Limit > 10_000 {
			return q, starling.Errorf(starling.Invalid, op, "limit %q: use 1-10000", s)
		}
	}
	if s := v.Get("follow"); s != "" {
		if q.Follow, err = strconv.ParseBool(s); err != nil {
			return q, starling.Errorf(starling.Invalid, op, "follow %q: use true or false", s)
		}
	}
	return q, nil
}

func (a *api) readLogs(w http.ResponseWriter, r *http.Request, p auth.Principal) error {
	name := starling.FunctionName(r.PathValue("name"))
	q, err := logQuery(r)
	if err != nil {
		return err
	}
	if a.Logs == nil {
		return starling.Errorf(starling.Unavailable, "read logs", "this frontend reads no logs: ask another one")
	}
	if _, err := a.find(r.Context(), p, name); err != nil {
		return err
	}
	out := newLines(w, q.Follow)
	defer out.stop()
	for rec, err := range a.Logs.Query(r.Context(), starling.FunctionRef{Account: p.Account, Name: name}, q) {
		if err != nil {
			if r.Context().Err() != nil {
				return nil // the reader left
			}
			return out.fail(a, err)
		}
		if !out.write(rec) {
			return nil
		}
	}
	return out.finish()
}

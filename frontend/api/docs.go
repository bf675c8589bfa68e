package api

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs.html
var docsPage string

// docs serves the document as a page of our own: nothing is fetched from elsewhere, so it works where the
// cluster has no way out. It is rendered once, after all routes are known.
func (a *api) docs() {
	a.invocation()
	type route struct{ Method, Path, Summary, Description, Tag string }
	var routes []route
	add := func(path, method string, op *huma.Operation) {
		if op != nil {
			routes = append(routes, route{method, path, op.Summary, op.Description, append(op.Tags, "other")[0]})
		}
	}
	spec := a.huma.OpenAPI()
	for path, item := range spec.Paths {
		add(path, http.MethodGet, item.Get)
		add(path, http.MethodPost, item.Post)
		add(path, http.MethodPut, item.Put)
		add(path, http.MethodDelete, item.Delete)
	}
	slices.SortFunc(routes, func(x, y route) int {
		return bytes.Compare([]byte(x.Tag+x.Path+x.Method), []byte(y.Tag+y.Path+y.Method))
	})
	var page bytes.Buffer
	if err := template.Must(template.New("docs").Parse(docsPage)).Execute(&page, routes); err != nil {
		panic(err) // the template is ours and part of the program
	}
	a.mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.Write(page.Bytes())
	})
}

// invocation describes the route that the frontend serves itself, past this package.
func (a *api) invocation() {
	text := func(doc string) *huma.Param {
		return &huma.Param{Description: doc, Schema: &huma.Schema{Type: "string"}}
	}
	header := func(doc string) *huma.Param { return text(doc) }
	any := map[string]*huma.MediaType{"*/*": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}
	in := func(name, where, doc string, required bool) *huma.Param {
		p := text(doc)
		p.Name, p.In, p.Required = name, where, required
		return p
	}
	a.huma.OpenAPI().AddOperation(&huma.Operation{OperationID: "invoke", Method: http.MethodPost, Path: "/v1/functions/{name}/invocations", Summary: "Call a function", Tags: []string{"invocations"},
		Description: "The body is the payload, at most 6 MiB. The answer is the function's own; a function that failed answers 502 with X-Starling-Function-Error and its error document.",
		Parameters: []*huma.Param{in("name", "path", "function", true), in("version", "query", "latest or a number", false),
			in("X-Request-Id", "header", "a UUID to name the call; one is drawn otherwise", false), in("X-Starling-Log-Tail", "header", "1 brings the end of the call's output", false)},
		RequestBody: &huma.RequestBody{Content: any},
		Responses: map[string]*huma.Response{
			"200": {Description: "The function's answer", Content: any, Headers: map[string]*huma.Param{
				"X-Request-Id": header("names the call"), "X-Starling-Version": header("version that ran"), "Server-Timing": header("phases of the call in milliseconds")}},
			"502":     {Description: "The function failed; the body is its error document"},
			"default": {Description: "A refusal: kind, reason, message, requestId."},
		}})
}

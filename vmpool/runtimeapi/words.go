package runtimeapi

import (
	"encoding/json"

	"starling"
)

// contentType returns b as a string; the usual ones allocate nothing.
func (s *Server) contentType(b []byte) string {
	switch string(b) {
	case "application/json":
		return "application/json"
	case "application/octet-stream", "":
		return "application/octet-stream"
	case "text/plain":
		return "text/plain"
	case "text/html":
		return "text/html"
	}
	if len(b) > 256 || !safe(b) {
		return "application/octet-stream"
	}
	return string(b)
}

func initFailure(given string, doc []byte) error {
	var f struct {
		Message string `json:"errorMessage"`
		Type    string `json:"errorType"`
	}
	if json.Unmarshal(doc, &f) != nil {
		f.Message = "the bootstrap reported an error without a readable reason"
	}
	if given == "" {
		given = errorWord([]byte(f.Type))
	}
	if given == "" {
		given = starling.ErrInit
	}
	return starling.Errorf(starling.Failed, "init function", "%s", f.Message).With(given)
}

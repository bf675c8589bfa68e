package api

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"starling/frontend/protocol"
)

// lines writes log records as they come, and an empty line now and then while none come. The beat is one
// timer, not a goroutine; stop ends it.
type lines struct {
	mu     sync.Mutex // guards what follows; held over writes, which a deadline bounds
	w      http.ResponseWriter
	rc     *http.ResponseController
	follow bool
	begun  bool
	broken bool
	beat   *time.Timer
}

func newLines(w http.ResponseWriter, follow bool) *lines {
	l := &lines{w: w, rc: http.NewResponseController(w), follow: follow}
	if follow {
		l.beat = time.AfterFunc(followBeat, l.sign)
	}
	return l
}

// begin sends the header before the first line.
func (l *lines) begin() {
	if l.begun {
		return
	}
	l.begun = true
	l.w.Header().Set("Content-Type", "application/x-ndjson")
	l.w.Header().Set("Cache-Control", "no-store")
	l.w.WriteHeader(http.StatusOK)
}

// put writes b; the lock is held.
func (l *lines) put(b []byte) bool {
	if l.broken {
		return false
	}
	l.begin()
	l.rc.SetWriteDeadline(time.Now().Add(followWrite))
	_, err := l.w.Write(b)
	if err == nil && l.follow {
		err = l.rc.Flush()
	}
	l.broken = err != nil
	return !l.broken
}

func (l *lines) write(rec protocol.LogRecord) bool {
	b, err := json.Marshal(rec)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.put(append(b, '\n'))
}

// sign shows a quiet reader that we are there, and us that it is.
func (l *lines) sign() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.beat != nil && l.put([]byte{'\n'}) {
		l.beat.Reset(followBeat)
	}
}

// fail tells an error: as a refusal before the first line, by breaking the stream after it.
func (l *lines) fail(a *api, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun {
		return err
	}
	a.Log.Warn("logs broke off", "error", err)
	panic(http.ErrAbortHandler) // the only way to tell the reader that the end is not the end
}

func (l *lines) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return nil
	}
	l.begin()
	return nil
}

func (l *lines) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.beat != nil {
		l.beat.Stop()
		l.beat = nil
	}
	l.broken = true
}

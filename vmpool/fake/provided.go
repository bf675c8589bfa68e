package fake

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/framed"
)

// listener hands in-memory connections to a Runtime API server.
type listener struct {
	conns chan net.Conn
	once  sync.Once
	end   chan struct{}
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), end: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.end:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.end) })
	return nil
}

func (l *listener) Addr() net.Addr { return address{} }

type address struct{}

func (address) Network() string { return "tcp" }
func (address) String() string  { return "127.0.0.1:9001" }

func (l *listener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.end:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bootstrap is a provided function: a loop of next and response for each slot.
func (s *Sandbox) bootstrap() {
	defer s.end(vmpool.Exit{Code: 1})
	s.sleep(s.d.InitTime)
	s.mu.Lock()
	env := s.code.Env
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	ended := s.ended
	s.mu.Unlock()
	defer cancel()
	h, ok := s.d.Handlers[env["_HANDLER"]]
	if ended || !ok {
		return
	}
	tr := &http.Transport{DialContext: s.ln.dial, MaxIdleConnsPerHost: starling.SlotsMax}
	defer tr.CloseIdleConnections()
	loops, _ := strconv.Atoi(env["AWS_LAMBDA_MAX_CONCURRENCY"])
	var wg sync.WaitGroup
	for range max(loops, 1) {
		wg.Go(func() { s.loop(ctx, &http.Client{Transport: tr}, h) })
	}
	wg.Wait()
}

const apiBase = "http://127.0.0.1:9001/2018-06-01/runtime/invocation/"

func (s *Sandbox) loop(ctx context.Context, client *http.Client, h Handler) {
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, apiBase+"next", nil)
		if err != nil {
			return
		}
		res, err := client.Do(req)
		if err != nil {
			return
		}
		payload, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			return
		}
		id, _ := starling.ParseRequestID(res.Header.Get("Lambda-Runtime-Aws-Request-Id"))
		ms, _ := strconv.ParseInt(res.Header.Get("Lambda-Runtime-Deadline-Ms"), 10, 64)
		there, here := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { s.relay(ctx, client, id, there) })
		h(&Call{Call: framed.NewCall(here, id, time.Until(time.UnixMilli(ms)), payload), sandbox: s})
		here.Close()
		wg.Wait()
	}
}

// relay posts what a handler said in frames as the Runtime API wants it.
func (s *Sandbox) relay(ctx context.Context, client *http.Client, id starling.RequestID, from net.Conn) {
	defer from.Close()
	a, ok := framed.ReadAnswer(from)
	if !ok {
		return
	}
	path := "/response"
	if a.Failed {
		path = "/error"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, apiBase+id.String()+path, bytes.NewReader(a.Body))
	if err != nil {
		return
	}
	if a.Failed {
		req.Header.Set("Lambda-Runtime-Function-Error-Type", a.Word)
	} else {
		req.Header.Set("Content-Type", a.Word)
	}
	res, err := client.Do(req)
	if err != nil {
		return
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
}

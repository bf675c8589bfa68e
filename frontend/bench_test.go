package frontend

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/cluster"
	"starling/frontend/api"
	"starling/frontend/auth"
	"starling/frontend/client"
)

// A fixed catalog answers at once: what is measured is the frontend.
type fixed struct {
	key starling.Key
	v   starling.Version
}

func (f *fixed) Key(context.Context, [32]byte) (starling.Key, error) { return f.key, nil }
func (f *fixed) Resolve(context.Context, starling.FunctionRef, starling.VersionNumber) (*starling.Version, error) {
	return &f.v, nil
}
func (f *fixed) Version(context.Context, starling.VersionID) (*starling.Version, error) {
	return &f.v, nil
}
func (f *fixed) Account(context.Context, starling.AccountID) (starling.Account, error) {
	return starling.Account{}, nil
}
func (f *fixed) Invoke(ctx context.Context, v *starling.Version, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, starling.Phases, error) {
	return echo(ctx, v, inv, sink)
}

func newFixed() (*Server, string) {
	secret, key := auth.NewKey()
	key.Account = "acme"
	f := &fixed{key, starling.Version{ID: 1, Config: starling.Config{}.WithDefaults()}}
	return New(Deps{Catalog: f, Dispatch: f, API: api.Deps{Auth: auth.New(f), Log: slog.New(slog.DiscardHandler), Topology: func() *cluster.Topology { return nil }}}), secret
}

// load drives h over 16 kept connections and reports the processor time of a request, of both ends.
func load(b *testing.B, h http.Handler, request []byte) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTime, WriteTimeout: answerTime}
	go srv.Serve(l)
	defer srv.Close()
	var before, after syscall.Rusage
	b.ReportAllocs()
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	var wg sync.WaitGroup
	const conns = 16
	b.ResetTimer()
	for i := range conns {
		wg.Go(func() {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			r := bufio.NewReader(c)
			for n := i; n < b.N; n += conns {
				c.Write(request)
				if err := skipAnswer(r); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
}

// skipAnswer reads one answer with a Content-Length without allocating.
func skipAnswer(r *bufio.Reader) error {
	size := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err := r.Discard(size)
			return err
		}
		if rest, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			for _, c := range bytes.TrimSpace(rest) {
				size = size*10 + int(c-'0')
			}
		}
	}
}

func request(secret string) []byte {
	return []byte("POST /v1/functions/echo/invocations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + secret + "\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n" + string(make([]byte, 1024)))
}

// The floor: net/http reading the same request and echoing it.
func BenchmarkBareHTTP(b *testing.B) {
	pool := sync.Pool{New: func() any { return make([]byte, 1024) }}
	load(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := pool.Get().([]byte)
		io.ReadFull(r.Body, buf)
		w.Header()["Content-Type"] = jsonType
		w.Write(buf)
		pool.Put(buf)
	}), request("x"))
}

func BenchmarkInvokeHTTP(b *testing.B) {
	s, secret := newFixed()
	load(b, s, request(secret))
}

func BenchmarkInvokeQUIC(b *testing.B) {
	s, secret := newFixed()
	w := &world{server: s}
	for _, c := range []int{1, 16} {
		b.Run(map[int]string{1: "c=1", 16: "c=16"}[c], func(b *testing.B) {
			addr, trust := endpoint(b, w.server)
			q, err := client.Dial(bg, addr, secret, "", trust)
			if err != nil {
				b.Fatal(err)
			}
			defer q.Close()
			payload := make([]byte, 1024)
			var before, after syscall.Rusage
			b.ReportAllocs()
			syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			var wg sync.WaitGroup
			b.ResetTimer()
			for i := range c {
				wg.Go(func() {
					for n := i; n < b.N; n += c {
						if _, err := q.Invoke(bg, client.Call{Function: "echo", Payload: payload}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
		})
	}
}

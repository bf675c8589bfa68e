// Package splice carries bytes both ways between two ends until both are done.
package splice

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"starling/transport"
)

// A Side is one end. Abort ends it so that its peer can tell it from a good end; Close frees what it holds.
type Side interface {
	io.Reader
	io.Writer
	CloseWrite() error
	Abort()
	Close() error
}

// Conn makes a Side of a TCP connection, which Join owns from then on.
func Conn(c *net.TCPConn) Side { return conn{c} }

type conn struct{ *net.TCPConn }

// Abort resets the connection.
func (c conn) Abort() {
	_ = c.SetLinger(0) // fails on a connection that is closed: then there is nothing to reset
	_ = c.TCPConn.Close()
}

// Stream makes a Side of a stream.
func Stream(s transport.Stream) Side { return stream{s} }

type stream struct{ transport.Stream }

// Abort abandons both directions.
func (s stream) Abort() { s.Cancel() }

// Close does nothing: a stream of which both directions have ended holds nothing, and may still deliver what was written.
func (s stream) Close() error { return nil }

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Join carries bytes until both directions have ended, one fails, or nothing moved for idle. Whatever ends the one side badly
// aborts the other. It closes both, uses two goroutines, of which the caller's is one, and adds what it carried to the counters.
func Join(a, b Side, idle time.Duration, fromA, fromB *atomic.Uint64) {
	var moved atomic.Int64
	began := time.Now()
	abort := func() {
		a.Abort()
		b.Abort()
	}
	var watch *time.Timer
	var mu sync.Mutex // guards watch against its own first shot
	mu.Lock()
	watch = time.AfterFunc(idle, func() {
		mu.Lock()
		defer mu.Unlock()
		if still := time.Since(began) - time.Duration(moved.Load()); still < idle {
			watch.Reset(idle - still)
			return
		}
		abort()
	})
	mu.Unlock()
	carry := func(to, from Side, count *atomic.Uint64) {
		buf := buffers.Get().(*[32 << 10]byte)
		defer buffers.Put(buf)
		for {
			n, err := from.Read(buf[:])
			if n > 0 {
				moved.Store(int64(time.Since(began)))
				if _, werr := to.Write(buf[:n]); werr != nil {
					abort()
					return
				}
				count.Add(uint64(n))
				moved.Store(int64(time.Since(began)))
			}
			if err == io.EOF {
				_ = to.CloseWrite() // fails when that end is gone, which its reader sees
				return
			}
			if err != nil {
				abort()
				return
			}
		}
	}
	var other sync.WaitGroup
	other.Go(func() { carry(b, a, fromA) })
	carry(a, b, fromB)
	other.Wait()
	watch.Stop()
	_ = a.Close() // both directions have ended: nothing is lost with it
	_ = b.Close()
}

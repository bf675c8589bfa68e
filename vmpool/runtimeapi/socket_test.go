package runtimeapi

import (
	"net"
	"testing"
	"time"

	"starling"
)

// slowSink is a caller that takes its answer when it is told to.
type slowSink struct {
	sink
	in, out chan struct{}
}

func (s *slowSink) Write(p []byte) (int, error) {
	s.in <- struct{}{}
	<-s.out
	return s.sink.Write(p)
}

// The poller reported these bytes before the reply was written; the wait after the reply must see them all the same.
func TestARequestThatOvertakesAReplyIsServed(t *testing.T) {
	s, c, _ := ready(t, 1)
	slow := &slowSink{in: make(chan struct{}), out: make(chan struct{})}
	done := make(chan starling.Outcome, 1)
	go func() {
		done <- s.Invoke(&starling.Invocation{ID: starling.RequestID{1}, Deadline: time.Now().Add(5 * time.Second), Payload: []byte("p")}, slow)
	}()
	c.hear()
	c.say("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok", idOf(1))
	<-slow.in
	c.next()
	time.Sleep(5 * time.Millisecond) // so that the poller tells before the reply is written
	close(slow.out)
	if status, _, _ := c.hear(); status != 202 {
		t.Errorf("the reply is %d", status)
	}
	if out := <-done; out.Status != starling.Succeeded {
		t.Errorf("the call ended as %+v", out)
	}
	second := invoke(s, 2, "second")
	if status, _, body := c.hear(); status != 200 || body != "second" {
		t.Errorf("got %d %q", status, body)
	}
	c.respond(idOf(2), "", "ok")
	<-second
}

// Closing a connection waits for what happens inside its wait, and that needs the server's lock: the server must not
// hold it then, whatever the peers are just saying.
func TestCloseDuringPipelinedRequestsEnds(t *testing.T) {
	for range 50 {
		s, dial := serve(t, 4)
		began := make(chan error, 1)
		for range 4 {
			c := dial()
			c.next()
			go func() {
				var err error
				for err == nil { // the connection ends, sooner or later in the middle of this
					_, err = c.nc.Write([]byte("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"))
				}
			}()
		}
		go func() { began <- s.Init(t.Context()) }()
		<-s.ready
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
			t.Fatal("Close hangs")
		}
		<-began
	}
}

// A peer that is gone must not stay among those that wait for a call.
func TestAPeerThatAsksAndLeavesIsForgotten(t *testing.T) {
	s, dial := serve(t, 8)
	go s.Init(t.Context())
	for range 8 {
		c := dial()
		c.next()
		c.nc.(*net.TCPConn).CloseWrite()
	}
	<-s.ready
	for n := 0; ; n++ {
		s.mu.Lock()
		left := len(s.conns)
		s.mu.Unlock()
		if left == 0 {
			return
		}
		if n == 2000 {
			t.Fatalf("%d connections stay", left)
		}
		time.Sleep(time.Millisecond)
	}
}

package tunnel

import (
	"sync"
	"time"

	"starling/transport"
)

// A doubt gives the stream of a flow that begins up when nothing is heard of its gateway for silentTime. A living gateway is heard more often
// than that, whatever it does for the flow: what is sent to it, and the question for a sign of life, it acknowledges at once.
type doubt struct {
	line   *line
	stream transport.Stream
	heard  uint64 // packets, when it last looked

	mu    sync.Mutex // guards the rest; a leaf
	timer *time.Timer
	over  bool
	gone  bool // the stream was given up
}

// doubt begins to doubt.
func (l *line) doubt(s transport.Stream) *doubt {
	d := &doubt{line: l, stream: s, heard: l.tunnel.Heard()}
	d.mu.Lock() // the first look waits until timer is set
	d.timer = time.AfterFunc(silentTime, d.look)
	d.mu.Unlock()
	return d
}

func (d *doubt) look() {
	if d.line.tunnel.Heard() == d.heard {
		time.Sleep(readTime)
	}
	now := d.line.tunnel.Heard()
	d.mu.Lock()
	silent := !d.over && now == d.heard
	if silent {
		d.over, d.gone = true, true
	}
	d.heard = now
	if !d.over {
		d.timer.Reset(silentTime)
	}
	d.mu.Unlock()
	if silent {
		d.line.owner.shun(d.line.key.gateway)
		d.stream.Cancel()
	}
}

// end ends it, and reports whether the stream was given up.
func (d *doubt) end() (gone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	d.timer.Stop()
	return d.gone
}

package vmpool

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"starling"
)

// A capture turns what one instance prints into log records and attributes it to the call in flight. With
// one slot the call is known; with more, lines belong to the instance and only START, END and REPORT
// carry the request.
//
// Attribution holds without a marker in the stream: at the end of a call its goroutine itself empties the pipes
// (drainer), so what was printed before the answer is counted to the call even when the reader is slow.
type capture struct {
	sink    LogSink
	single  bool
	version string
	dropped *atomic.Uint64 // lines and parts of lines cut by a limit, over all instances

	mu     sync.Mutex // held while sink.Append runs, which never blocks
	rec    LogRecord
	text   []byte // behind the lines of rec
	marks  []mark
	open   bool // a call is in flight and lines are attributed to it
	start  bool // START is still to be written
	tail   bool
	tailed []byte
	kept   int // bytes of output kept of the call
	muted  bool
	window time.Time  // with several slots: since when kept counts
	part   [2]partial // unfinished lines of stdout and stderr
}

// mark is one line inside text.
type mark struct {
	stream   Stream
	from, to int
}

type partial struct {
	text []byte
	cut  bool // the line passed LogLineMax; the rest is dropped until its newline
}

const tailKeep = 2 * starling.LogTailMax

// begin attributes what follows to a call.
func (c *capture) begin(id starling.RequestID, tail bool) {
	c.mu.Lock()
	c.flushPartials()
	c.emit()
	if c.single {
		c.rec.Request = id
		c.open, c.start, c.kept, c.muted = true, true, 0, false
		c.tail, c.tailed = tail, c.tailed[:0]
	}
	c.mu.Unlock()
}

// abandon takes back begin: the call never reached the code, and runs elsewhere.
func (c *capture) abandon() {
	c.mu.Lock()
	c.open, c.start, c.tail = false, false, false
	if c.single {
		c.rec.Request = starling.RequestID{}
	}
	c.mu.Unlock()
}

// ending is what the last lines of a call say.
type ending struct {
	id        starling.RequestID
	now       time.Time
	run, init time.Duration
	memoryMiB int
	memoryMax int64
	says      string // a further platform line between START and END; empty for none
	tail      bool
}

// end writes the last lines of a call and returns a copy of the call's last output when that was asked for.
func (c *capture) end(e ending) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.single {
		c.flushPartials()
	} else {
		c.emit()
		c.rec.Request = e.id
		c.start, c.tail, c.tailed = true, e.tail, c.tailed[:0]
	}
	c.started(e.id)
	if e.says != "" {
		c.platform(append(c.text, e.says...))
	}
	c.platform(appendEnd(c.text, e.id))
	c.platform(appendReport(c.text, e.id, e.run, e.init, e.memoryMiB, e.memoryMax))
	c.rec.Time = e.now
	c.emitNow()
	var out []byte
	if e.tail {
		out = bytes.Clone(c.tailed[max(0, len(c.tailed)-starling.LogTailMax):])
	}
	c.tail = false
	if c.single {
		c.open = false // what comes late still belongs to this call, until the next begins
	} else {
		c.rec.Request = starling.RequestID{}
	}
	return out
}

// started writes START before the first other line of a call.
func (c *capture) started(id starling.RequestID) {
	if c.start {
		c.start = false
		c.platform(appendStart(c.text, id, c.version))
	}
}

// platform takes text with one more line of ours at its end.
func (c *capture) platform(text []byte) {
	from := len(c.text)
	c.text = text
	c.add(Platform, from)
}

func (c *capture) add(s Stream, from int) {
	c.marks = append(c.marks, mark{s, from, len(c.text)})
	if c.tail {
		c.tailed = append(append(c.tailed, c.text[from:]...), '\n')
		if len(c.tailed) > 2*tailKeep {
			c.tailed = append(c.tailed[:0], c.tailed[len(c.tailed)-tailKeep:]...)
		}
	}
}

// write takes bytes that the code printed.
func (c *capture) write(s Stream, b []byte) {
	p := &c.part[s]
	for len(b) > 0 {
		line, rest := b, []byte(nil)
		i := bytes.IndexByte(b, '\n')
		if i >= 0 {
			line, rest = b[:i], b[i+1:]
		}
		if room := starling.LogLineMax - len(p.text); len(line) > room {
			line = line[:room]
			if !p.cut {
				p.cut = true
				c.dropped.Add(1)
			}
		}
		p.text = append(p.text, line...)
		if i >= 0 {
			c.line(s)
		}
		b = rest
	}
}

// line finishes the current line of s.
func (c *capture) line(s Stream) {
	p := &c.part[s]
	text := bytes.TrimSuffix(p.text, []byte("\r"))
	if c.kept+len(text)+1 > starling.LogCallMax {
		c.mute()
	} else {
		c.kept += len(text) + 1
		if c.open {
			c.started(c.rec.Request)
		}
		from := len(c.text)
		c.text = append(c.text, text...)
		c.add(s, from)
	}
	p.text, p.cut = p.text[:0], false
	if cap(p.text) > 1<<10 {
		p.text = nil // an idle instance keeps no long line's memory
	}
}

// mute drops further output of this call and says so once.
func (c *capture) mute() {
	c.dropped.Add(1)
	if !c.muted {
		c.muted = true
		c.platform(append(c.text, "further output of this call is dropped: it is over the limit"...))
	}
}

func (c *capture) flushPartials() {
	for s := range c.part {
		if len(c.part[s].text) > 0 {
			c.line(Stream(s))
		}
	}
}

// emit hands the collected lines on.
func (c *capture) emit() {
	if len(c.marks) > 0 {
		c.rec.Time = time.Now()
		c.emitNow()
	}
}

func (c *capture) emitNow() {
	c.rec.Lines = c.rec.Lines[:0]
	for _, m := range c.marks {
		c.rec.Lines = append(c.rec.Lines, LogLine{m.stream, c.text[m.from:m.to]})
	}
	c.sink.Append(&c.rec)
	c.marks, c.text = c.marks[:0], c.text[:0]
	if cap(c.text) > 4<<10 {
		c.text, c.marks, c.rec.Lines = nil, nil, nil
	}
}

// took is what a reader calls with each piece it read.
func (c *capture) took(s Stream, b []byte) (flooding bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tookLocked(s, b)
}

func (c *capture) tookLocked(s Stream, b []byte) (flooding bool) {
	c.write(s, b)
	c.emit()
	if now := time.Now(); !c.single && now.Sub(c.window) > time.Second {
		c.window, c.kept, c.muted = now, 0, false // with several slots a second bounds what a call bounds with one
	}
	return c.muted
}

// finish flushes what is left when the instance ended.
func (c *capture) finish() {
	c.mu.Lock()
	c.flushPartials()
	c.emit()
	c.mu.Unlock()
}

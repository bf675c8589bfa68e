package logs

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"starling"
	"starling/transport"
)

// A question has a stream of its own: u32 length · CBOR query. The answer is frames of u8 kind · entry (for
// a line, as on disk) or u8 error kind (for a refusal). The asker ends it by cancelling the stream.
const (
	frameLine     = 1
	frameCaughtUp = 2 // what was there is told; what follows is new
	frameEnd      = 3
	frameRefusal  = 4

	queryMax   = 1 << 10
	askMax     = 5 * time.Second // for a host to begin its answer
	laneLength = 256             // lines read ahead from each host
)

// Serve answers questions of frontends on ep. Call it before ep opens.
func (s *Store) Serve(ep transport.Endpoint) { ep.Handle(transport.ChannelLogs, s.serve) }

func (s *Store) serve(st transport.Stream) {
	defer st.Cancel()
	if !st.Peer().Roles.Has(starling.RoleFrontend) {
		return
	}
	ctx, cancel := context.WithCancel(s.group.Context())
	defer cancel()
	unhook := context.AfterFunc(ctx, st.Cancel)
	defer unhook()
	st.SetReadDeadline(time.Now().Add(askMax))
	q, err := readQuery(st)
	if err != nil {
		s.cfg.Log.Debug("read log query", "peer", st.Peer().Node, "error", err)
		return
	}
	st.SetReadDeadline(time.Time{})
	var watch sync.WaitGroup
	watch.Go(func() { // the asker says nothing more: any end of its direction ends the answer
		io.Copy(io.Discard, st)
		cancel()
	})
	w := bufio.NewWriterSize(st, 32<<10)
	var buf []byte
	live := false
	err = s.scan(ctx, q, func(r Record) error {
		buf = appendEntry(append(buf[:0], frameLine), &r)
		if _, err := w.Write(buf); err != nil || !live {
			return err
		}
		return w.Flush()
	}, func() error {
		live = true
		w.WriteByte(frameCaughtUp)
		return w.Flush()
	})
	if err != nil && ctx.Err() == nil {
		w.Write([]byte{frameRefusal, byte(starling.KindOf(err))})
	} else {
		w.WriteByte(frameEnd)
	}
	if w.Flush() == nil && st.CloseWrite() == nil {
		<-ctx.Done() // until the asker has read it
	}
	st.Cancel()
	watch.Wait()
}

func readQuery(r io.Reader) (q Query, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return q, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > queryMax {
		return q, starling.Errorf(starling.TooLarge, "read log query", "%d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return q, err
	}
	if err := cbor.Unmarshal(b, &q); err != nil {
		return q, starling.Errorf(starling.Invalid, "read log query", "%w", err)
	}
	return q, q.Validate()
}

// A Host is a node that may hold lines.
type Host struct {
	ID   starling.NodeID
	Addr string // of its QUIC endpoint
}

// Fanout reads the logs of all hosts as one.
type Fanout struct {
	Local *Store // of this node when it is a host; else nil
	Self  starling.NodeID
	Hosts func() []Host // all hosts; this node may be among them
	Open  func(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error)
	Log   *slog.Logger
}

// A lane is one host's lines on their way to the merge.
type lane struct {
	host  Host
	items chan item
	head  item
}

type item struct {
	kind byte
	rec  Record
	err  error
}

// Query yields the lines of all hosts that q selects: what was there merged by time, then what comes as it
// comes. A host that does not answer is told as a line of the platform; the others' lines come all the same.
func (f *Fanout) Query(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if err := q.Validate(); err != nil {
			yield(Record{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer wg.Wait() // after cancel: no goroutine outlives the query
		defer cancel()
		lanes := f.start(ctx, &wg, q)
		tail := ring{max: q.limit()}
		missing := merge(ctx, lanes, &tail)
		stop := tail.each(func(r Record) error {
			if !yield(r, nil) {
				return errStop
			}
			return nil
		})
		for _, m := range missing {
			f.Log.Warn("read logs of a host", "node", m.host.ID, "error", m.head.err)
			text := fmt.Sprintf("starling: host %s does not answer; its lines are missing", m.host.ID)
			r := Record{Time: time.Now().UTC(), Function: starling.FunctionRef{Account: q.Account, Name: q.Function}, Stream: Platform, Text: []byte(text)}
			if stop == nil && !yield(r, nil) {
				stop = errStop
			}
		}
		if stop == nil && q.Follow {
			f.follow(ctx, &wg, lanes, yield)
		}
	}
}

// start asks every host.
func (f *Fanout) start(ctx context.Context, wg *sync.WaitGroup, q Query) []*lane {
	var lanes []*lane
	add := func(h Host, ask func(context.Context, Query, func(item) error) error) {
		l := &lane{host: h, items: make(chan item, laneLength)}
		lanes = append(lanes, l)
		wg.Go(func() {
			defer close(l.items)
			send := func(i item) error {
				select {
				case l.items <- i:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			err := ask(ctx, q, send)
			if err != nil {
				send(item{kind: frameRefusal, err: err}) // fails only when nobody listens any more
			}
		})
	}
	if f.Local != nil {
		add(Host{ID: f.Self}, f.askLocal)
	}
	for _, h := range f.Hosts() {
		if f.Local == nil || h.ID != f.Self {
			add(h, func(ctx context.Context, q Query, send func(item) error) error { return f.ask(ctx, h, q, send) })
		}
	}
	return lanes
}

func (f *Fanout) askLocal(ctx context.Context, q Query, send func(item) error) error {
	return f.Local.scan(ctx, q, func(r Record) error { return send(item{kind: frameLine, rec: r}) },
		func() error { return send(item{kind: frameCaughtUp}) })
}

// ask reads one other host's lines until they end or ctx does.
func (f *Fanout) ask(ctx context.Context, h Host, q Query, send func(item) error) error {
	opening, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	st, err := f.Open(opening, h.Addr, transport.ChannelLogs)
	if err != nil {
		return err
	}
	defer st.Cancel()
	unhook := context.AfterFunc(ctx, st.Cancel)
	defer unhook()
	body, err := cbor.Marshal(q)
	if err != nil {
		return err
	}
	if _, err := st.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
		return err
	}
	st.SetReadDeadline(time.Now().Add(askMax))
	r := bufio.NewReaderSize(st, 64<<10)
	for {
		i, err := readItem(r, q.Account)
		if err != nil {
			return err
		}
		if i.kind == frameEnd {
			return nil
		}
		if i.kind == frameCaughtUp {
			st.SetReadDeadline(time.Time{})
		}
		if err := send(i); err != nil || i.kind == frameRefusal {
			return err
		}
	}
}

// readItem reads one frame of an answer.
func readItem(r *bufio.Reader, account starling.AccountID) (item, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return item{}, err
	}
	switch kind {
	case frameCaughtUp, frameEnd:
		return item{kind: kind}, nil
	case frameRefusal:
		k, err := r.ReadByte()
		if err != nil {
			return item{}, err
		}
		return item{kind: kind, err: starling.Errorf(starling.Kind(k), "read logs", "the host refused: %s", starling.Kind(k))}, nil
	case frameLine:
		head, err := r.Peek(entryHead)
		if err != nil {
			return item{}, err
		}
		n := binary.LittleEndian.Uint32(head)
		if n > entryMax {
			return item{}, starling.Errorf(starling.TooLarge, "read logs", "entry of %d bytes", n)
		}
		b := make([]byte, entryHead+int(n))
		if _, err := io.ReadFull(r, b); err != nil {
			return item{}, err
		}
		rec, size := parseEntry(b)
		if size != len(b) {
			return item{}, starling.Errorf(starling.Invalid, "read logs", "damaged entry")
		}
		rec.Function.Account = account
		return item{kind: kind, rec: rec}, nil
	}
	return item{}, starling.Errorf(starling.Invalid, "read logs", "no frame of kind %d", kind)
}

// merge reads every lane up to the line between old and new and hands the lines to tail by time. It returns
// the lanes that failed.
func merge(ctx context.Context, lanes []*lane, tail *ring) (failed []*lane) {
	var live []*lane
	step := func(l *lane) {
		select {
		case i, ok := <-l.items:
			l.head = i
			if ok && i.kind == frameLine {
				live = append(live, l)
			} else if ok && i.err != nil {
				failed = append(failed, l)
			}
		case <-ctx.Done():
		}
	}
	for _, l := range lanes {
		step(l)
	}
	for len(live) > 0 {
		first := 0
		for i, l := range live {
			if l.head.rec.Time.Before(live[first].head.rec.Time) {
				first = i
			}
		}
		l := live[first]
		live = append(live[:first], live[first+1:]...)
		tail.add(l.head.rec)
		step(l)
	}
	return failed
}

// follow yields new lines of all hosts as they come.
func (f *Fanout) follow(ctx context.Context, wg *sync.WaitGroup, lanes []*lane, yield func(Record, error) bool) {
	all := make(chan Record)
	for _, l := range lanes {
		wg.Go(func() {
			for i := range l.items {
				if i.kind != frameLine {
					continue
				}
				select {
				case all <- i.rec:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for {
		select {
		case r := <-all:
			if !yield(r, nil) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

package capture

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"starling/internal/steer"
	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/policy"
)

// A pair is a socket inside and whom it speaks to.
type pair struct{ from, to netip.AddrPort }

// dgrams is one flow of datagrams. What the code sends waits in queue; when that is full it is dropped, as networks do.
type dgrams struct {
	pair
	queue chan []byte
	moved atomic.Int64 // Unix nanoseconds
}

// An answerer sends as one address to the code inside. It is shared by the flows to that address.
type answerer struct {
	once  sync.Once
	conn  *net.UDPConn                      // nil where a guest is answered
	send  func(d []byte, to netip.AddrPort) // nil when it could not be made
	users int                               // under the outlet's lock
}

// receive takes the datagrams of the code inside until the socket closes.
func (o *Outlet) receive(ctx context.Context) {
	buf, oob := make([]byte, header.DatagramMax), make([]byte, steer.OOBSize)
	for ctx.Err() == nil {
		n, on, _, from, err := o.sockets.udp.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			select { // an error that a datagram left, or the end of the socket
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if to, ok := steer.Destination(oob[:on]); ok {
			o.Datagram(policy.Plain(from), to, buf[:n])
		}
	}
}

// Datagram puts a datagram of the code inside into its flow, which it begins when there is none. It does not wait, and keeps a copy.
func (o *Outlet) Datagram(from, to netip.AddrPort, datagram []byte) {
	p := pair{from, to}
	if p.to != steer.Resolver && policy.Always(p.to) != policy.Permitted {
		return
	}
	o.mu.Lock()
	f := o.flows[p]
	if f == nil {
		if len(o.flows) >= dgramMax {
			o.mu.Unlock()
			return
		}
		f = &dgrams{pair: p, queue: make(chan []byte, queueMax)}
		run := o.exchange
		if p.to == steer.Resolver {
			run = o.resolve
		}
		if !o.group.Go(func(ctx context.Context) { run(ctx, f) }) {
			o.mu.Unlock()
			return
		}
		o.flows[p] = f
	}
	select { // under the lock, so that no datagram is given to a flow that has ended
	case f.queue <- append([]byte(nil), datagram...):
	default:
	}
	o.mu.Unlock()
}

// forget ends a flow's place in the table unless a datagram came meanwhile.
func (o *Outlet) forget(f *dgrams, always bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(f.queue) > 0 && !always {
		return false
	}
	delete(o.flows, f.pair)
	return true
}

// resolve answers the questions for names of one socket.
func (o *Outlet) resolve(ctx context.Context, f *dgrams) {
	for {
		select {
		case question := <-f.queue:
			answer, err := o.ask(ctx, question)
			if err == nil {
				o.answer(f, answer)
			}
			continue
		default:
		}
		if o.forget(f, ctx.Err() != nil) { // a resolver's socket asks once or twice: it waits for no more
			return
		}
	}
}

// answer sends one datagram to the code inside as whom it spoke to.
func (o *Outlet) answer(f *dgrams, datagram []byte) {
	a := o.answerer(f.to)
	if a.send != nil {
		a.send(datagram, f.from)
	}
	o.release(f.to, a)
}

// exchange carries the datagrams of one flow until nothing moved for a minute.
func (o *Outlet) exchange(ctx context.Context, f *dgrams) {
	defer o.forget(f, true)
	opening, cancel := context.WithTimeout(ctx, openTime)
	s, err := o.way.Open(opening, header.UDP, f.to)
	cancel()
	if err != nil {
		return
	}
	a := o.answerer(f.to)
	defer o.release(f.to, a)
	if a.send == nil {
		s.Cancel()
		return
	}
	defer context.AfterFunc(ctx, s.Cancel)()
	f.moved.Store(time.Now().UnixNano())
	ended := make(chan struct{})
	if !o.group.Go(func(context.Context) {
		defer close(ended)
		f.bring(s, a)
	}) {
		s.Cancel()
		return
	}
	defer func() {
		s.Cancel()
		<-ended
	}()
	idle := time.NewTicker(idleDgram / 4)
	defer idle.Stop()
	for {
		select {
		case d := <-f.queue:
			f.moved.Store(time.Now().UnixNano())
			if _, err := s.Write(header.AppendDatagram(nil, d)); err != nil {
				return
			}
		case <-idle.C:
			if time.Since(time.Unix(0, f.moved.Load())) > idleDgram {
				return
			}
		case <-ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// bring carries what comes back.
func (f *dgrams) bring(s transport.Stream, a *answerer) {
	buf := make([]byte, header.DatagramMax)
	for {
		d, err := header.ReadDatagram(s, buf)
		if err != nil {
			return
		}
		f.moved.Store(time.Now().UnixNano())
		a.send(d, f.from)
	}
}

// answerer returns what sends as addr, for release.
func (o *Outlet) answerer(addr netip.AddrPort) *answerer {
	o.mu.Lock()
	a := o.answers[addr]
	if a == nil {
		a = &answerer{}
		o.answers[addr] = a
	}
	a.users++
	o.mu.Unlock()
	a.once.Do(func() { a.open(o, addr) })
	return a
}

// open makes what sends as addr.
func (a *answerer) open(o *Outlet, addr netip.AddrPort) {
	if o.sockets == nil {
		a.send = func(d []byte, to netip.AddrPort) { o.say(addr, to, d) }
		return
	}
	conn, err := o.sockets.answering(addr)
	if err != nil {
		return // as if nobody answered
	}
	a.conn = conn
	a.send = func(d []byte, to netip.AddrPort) {
		_, _ = conn.WriteToUDPAddrPort(d, to) // its socket may be closed: a datagram may be lost
	}
}

// release gives an answerer back; its last user closes it.
func (o *Outlet) release(addr netip.AddrPort, a *answerer) {
	o.mu.Lock()
	a.users--
	last := a.users == 0
	if last {
		delete(o.answers, addr)
	}
	o.mu.Unlock()
	if last && a.conn != nil {
		a.conn.Close()
	}
}

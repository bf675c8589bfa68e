package capture

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

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
	conn  *net.UDPConn
	err   error
	users int // under the outlet's lock
}

// receive takes the datagrams of the code inside until the socket closes.
func (o *Outlet) receive(ctx context.Context) {
	buf, oob := make([]byte, header.DatagramMax), make([]byte, 128)
	for ctx.Err() == nil {
		n, on, _, from, err := o.udp.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			select { // an error that a datagram left, or the end of the socket
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		to, ok := destination(oob[:on])
		if !ok {
			continue
		}
		o.forward(pair{policy.Plain(from), to}, buf[:n])
	}
}

// destination returns where a datagram was sent to.
func destination(oob []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= 8 {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:8])), binary.BigEndian.Uint16(m.Data[2:4])), true
		}
	}
	return netip.AddrPort{}, false
}

// forward puts a datagram into its flow, which it begins when there is none.
func (o *Outlet) forward(p pair, datagram []byte) {
	if p.to != resolver && policy.Always(p.to) != policy.Permitted {
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
		if p.to == resolver {
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
	if a.err == nil {
		_, _ = a.conn.WriteToUDPAddrPort(datagram, f.from) // its socket may be closed: a datagram may be lost
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
	if a.err != nil {
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
		_, _ = a.conn.WriteToUDPAddrPort(d, f.from) // its socket may be closed: a datagram may be lost
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
	a.once.Do(func() { a.conn, a.err = answering(o.ns, addr) })
	return a
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

package capture

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling/internal/steer"
	"starling/vpcproxy/header"
	"starling/vpcproxy/policy"
	"starling/vpcproxy/splice"
)

// acceptPause is how long the outlet waits after the machine had no descriptor for a connection.
const acceptPause = 10 * time.Millisecond

// accept takes the connections of the code inside until the listener closes.
func (o *Outlet) accept(ctx context.Context) {
	for {
		c, err := o.sockets.tcp.AcceptTCP()
		if err != nil {
			select { // the end of the listener, which Close brings about, or no descriptor for now
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
				continue
			}
		}
		o.Flow(policy.Plain(c.LocalAddr().(*net.TCPAddr).AddrPort()), splice.Conn(c))
	}
}

// Flow carries one connection that the code inside made to an address. It does not wait, and owns side.
func (o *Outlet) Flow(to netip.AddrPort, side splice.Side) {
	why := splice.Stopped
	if o.conns.Add(1) > connMax {
		why = splice.Crowded
	} else if o.group.Go(func(ctx context.Context) { o.serve(ctx, to, side) }) {
		return
	}
	o.conns.Add(-1)
	side.Abort()
	o.ended(to, why)
}

// ended notes why a flow is over.
func (o *Outlet) ended(to netip.AddrPort, why splice.End) {
	o.way.Ended(why)
	if why != splice.Done {
		o.maker.Log.Debug("flow reset", "to", to, "why", string(why), "network", o.as.Ref(), "function", o.as.Function, "instance", o.as.Instance)
	}
}

func (o *Outlet) serve(ctx context.Context, to netip.AddrPort, side splice.Side) {
	defer o.conns.Add(-1)
	opened := context.AfterFunc(ctx, side.Abort)
	defer opened()
	if to == steer.Resolver {
		o.serveNames(ctx, side)
		return
	}
	if v := policy.Always(to); v != policy.Permitted {
		o.deny(to, v)
		side.Abort()
		o.way.Ended(splice.Denied)
		return
	}
	opening, cancel := context.WithTimeout(ctx, openTime)
	s, err := o.way.Open(opening, header.TCP, to)
	cancel()
	if err != nil {
		side.Abort() // the way has counted why
		return
	}
	j := splice.New(side, idleConn, splice.Counter{Sent: new(metrics.Counter), Taken: new(metrics.Counter)})
	defer context.AfterFunc(ctx, j.Abort)()
	opened() // from here on it is the joint that ends, and knows why
	j.Run(ctx, s)
	o.ended(to, j.End())
}

// deny writes down, once a second, what is refused before it leaves the host.
func (o *Outlet) deny(to netip.AddrPort, why policy.Verdict) {
	now := time.Now()
	o.mu.Lock()
	tell := now.Sub(o.told) >= time.Second
	if tell {
		o.told = now
	}
	o.mu.Unlock()
	if tell {
		o.maker.Log.Warn("flow denied", "to", to, "why", string(why), "network", o.as.Ref(), "function", o.as.Function, "instance", o.as.Instance)
	}
}

// nameTime bounds one question for a name, and how long a connection to the resolver may be quiet.
const nameTime = 10 * time.Second

// serveNames answers questions for names that come over TCP, one after the other.
func (o *Outlet) serveNames(ctx context.Context, side splice.Side) {
	defer side.Close()
	quiet := time.AfterFunc(nameTime, side.Abort)
	defer quiet.Stop()
	buf := make([]byte, header.DatagramMax)
	for {
		question, err := header.ReadDatagram(side, buf) // the same two bytes of length before each message
		if err != nil {
			return
		}
		answer, err := o.ask(ctx, question)
		if err != nil {
			return
		}
		if _, err := side.Write(header.AppendDatagram(nil, answer)); err != nil {
			return
		}
		quiet.Reset(nameTime)
	}
}

// ask has the gateway answer one question.
func (o *Outlet) ask(ctx context.Context, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, nameTime)
	defer cancel()
	s, err := o.way.Open(ctx, header.DNS, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	defer s.Cancel()
	defer context.AfterFunc(ctx, s.Cancel)()
	if _, err := s.Write(header.AppendDatagram(nil, question)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(s, size[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err = io.ReadFull(s, answer)
	return answer, err
}

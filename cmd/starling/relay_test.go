package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A weather is what a relay does to packets; the zero weather passes them on at once.
type weather struct {
	delay, jitter time.Duration // each packet waits delay and up to jitter more, so that packets overtake each other
	loss, twice   float64       // shares lost, and sent twice
	corrupt       float64       // share with one bit turned over
}

// A relay stands between all nodes: node j is reached at the hub, on the front port of j, and sees node i come from the
// back port of the pair. So a packet filter can tell any direction of any pair, and the relay can spoil packets by seed.
type relay struct {
	weather atomic.Pointer[weather]
	fronts  []*net.UDPConn
	wg      sync.WaitGroup
	passed  atomic.Int64
	spoiled atomic.Int64
	mu      sync.Mutex // guards rng
	rng     *rand.Rand
	conns   []*net.UDPConn
}

func frontPort(j int) int   { return 7400 + j }
func backPort(i, j int) int { return 7500 + 10*i + j }
func nodePort() int         { return 7400 }

// newRelay relays between the nodes of n until the test ends.
func newRelay(t *testing.T, n *testNet, seed uint64) *relay {
	r := &relay{rng: rand.New(rand.NewPCG(seed, 2)), fronts: make([]*net.UDPConn, len(n.spaces))}
	r.weather.Store(&weather{})
	for j := 1; j < len(n.spaces); j++ {
		front := n.hub.listen(t, fmt.Sprintf("%s:%d", netHub, frontPort(j)))
		r.conns = append(r.conns, front)
		backs := make([]*net.UDPConn, len(n.spaces))
		callers := make([]atomic.Pointer[netip.AddrPort], len(n.spaces))
		node := netip.MustParseAddrPort(fmt.Sprintf("%s:%d", netAddr(j), nodePort()))
		for i := 1; i < len(n.spaces); i++ {
			back := n.hub.listen(t, fmt.Sprintf("%s:%d", netHub, backPort(i, j)))
			backs[i] = back
			r.conns = append(r.conns, back)
			r.pump(back, func(netip.AddrPort) (*net.UDPConn, netip.AddrPort) {
				if to := callers[i].Load(); to != nil {
					return front, *to
				}
				return nil, netip.AddrPort{}
			})
		}
		r.pump(front, func(from netip.AddrPort) (*net.UDPConn, netip.AddrPort) {
			i := int(from.Addr().As4()[3])
			if i >= len(backs) {
				return nil, netip.AddrPort{}
			}
			callers[i].Store(&from)
			return backs[i], node
		})
	}
	t.Cleanup(r.close)
	return r
}

// pump passes what comes at from on to where route says.
func (r *relay) pump(from *net.UDPConn, route func(netip.AddrPort) (*net.UDPConn, netip.AddrPort)) {
	r.wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, addr, err := from.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
			if out, to := route(addr); out != nil {
				r.pass(out, to, buf[:n])
			}
		}
	})
}

// pass sends one packet as the weather is.
func (r *relay) pass(out *net.UDPConn, to netip.AddrPort, packet []byte) {
	r.passed.Add(1)
	w := *r.weather.Load()
	if w == (weather{}) {
		out.WriteToUDPAddrPort(packet, to)
		return
	}
	r.mu.Lock()
	lost, twice, corrupt := r.rng.Float64() < w.loss, r.rng.Float64() < w.twice, r.rng.Float64() < w.corrupt
	bit, waits := r.rng.IntN(8*max(len(packet), 1)), [2]time.Duration{}
	for k := range waits {
		waits[k] = w.delay + time.Duration(r.rng.Int64N(int64(w.jitter)+1))
	}
	r.mu.Unlock()
	if lost || twice || corrupt {
		r.spoiled.Add(1)
	}
	if lost {
		return
	}
	p := append([]byte(nil), packet...)
	if corrupt && len(p) > 0 {
		p[bit/8] ^= 1 << (bit % 8)
	}
	send := func() { out.WriteToUDPAddrPort(p, to) } // an error is a closed socket or a node that is gone: a lost packet
	time.AfterFunc(waits[0], send)
	if twice {
		time.AfterFunc(waits[1], send)
	}
}

func (r *relay) close() {
	for _, c := range r.conns {
		c.Close()
	}
	r.wg.Wait()
}

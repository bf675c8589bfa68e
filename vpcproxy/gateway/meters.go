package gateway

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/vpcproxy/header"
)

// meters are a gateway's numbers. Labels are kinds, answers and the networks that the operator plugged in.
type meters struct {
	set     *metrics.Set
	kinds   map[header.Kind]*metrics.Counter
	answers map[header.Answer]*metrics.Counter
	dialled *metrics.Histogram
}

// flowCounters are the bytes of one network.
type flowCounters struct{ up, down atomic.Uint64 }

func newMeters(g *Gateway) *meters {
	m := &meters{set: metrics.NewSet(), kinds: map[header.Kind]*metrics.Counter{}, answers: map[header.Answer]*metrics.Counter{}}
	for k := header.TCP; k <= header.Test; k++ {
		m.kinds[k] = m.set.NewCounter(fmt.Sprintf("starling_gateway_flows_total{kind=%q}", k.String()))
	}
	for a := header.Denied; a <= header.Malformed; a++ {
		m.answers[a] = m.set.NewCounter(fmt.Sprintf("starling_gateway_refused_total{why=%q}", a.String()))
	}
	m.dialled = m.set.NewHistogram("starling_gateway_dial_seconds")
	m.set.NewGauge("starling_gateway_flows", func() float64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return float64(g.table.Conns())
	})
	m.set.NewGauge("starling_gateway_networks", func() float64 { return float64(len(g.cfg.Uplinks)) })
	return m
}

// network makes the counters of one network.
func (m *meters) network(ref starling.NetworkRef) *flowCounters {
	c := &flowCounters{}
	for direction, n := range map[string]*atomic.Uint64{"out": &c.up, "in": &c.down} {
		m.set.NewGauge(fmt.Sprintf("starling_gateway_bytes_total{network=%q,direction=%q}", ref.String(), direction), func() float64 { return float64(n.Load()) })
	}
	return c
}

func (m *meters) begun(k header.Kind) { m.kinds[k].Inc() }

func (m *meters) refused(a header.Answer) { m.answers[a].Inc() }

// Metrics returns the gateway's numbers.
func (g *Gateway) Metrics() *metrics.Set { return g.m.set }

// transient reports whether a datagram could not be sent for a reason that the next may not meet.
func transient(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EMSGSIZE)
}

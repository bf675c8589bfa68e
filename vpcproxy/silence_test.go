package vpcproxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A ford is the way between the host and one gateway, which can stand still: to each end it is as if the other did. What fits into the
// buffers of sockets meanwhile comes late, as it does with a process that was stopped.
type ford struct {
	host, gateway *net.UDPConn
	still         atomic.Bool
}

// ford puts itself before a gateway.
func (w *world) ford(g *gatewayNode) *ford {
	f := &ford{}
	var err error
	f.host, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(w.t, err)
	to, err := net.ResolveUDPAddr("udp4", g.node.Addr)
	must(w.t, err)
	f.gateway, err = net.DialUDP("udp4", nil, to)
	must(w.t, err)
	w.t.Cleanup(func() { f.host.Close(); f.gateway.Close() })
	var back atomic.Pointer[net.UDPAddr]
	carry := func(from *net.UDPConn, give func([]byte)) {
		buf := make([]byte, 64<<10)
		for {
			n, addr, err := from.ReadFromUDP(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			for f.still.Load() {
				time.Sleep(time.Millisecond)
			}
			if err != nil {
				continue // nobody listens at the gateway's port: what was sent is lost
			}
			if from == f.host {
				back.Store(addr)
			}
			give(buf[:n])
		}
	}
	go carry(f.host, func(p []byte) { f.gateway.Write(p) })
	go carry(f.gateway, func(p []byte) { f.host.WriteToUDP(p, back.Load()) })
	g.node.Addr = f.host.LocalAddr().String()
	return f
}

// Flows outlive a spell in which their gateway says nothing, as it does when its process, or the machine, stands still. Whoever connects
// meanwhile is served by the other gateway.
func TestFlowsOutliveASilence(t *testing.T) {
	w := newWorld(t, 2, nil)
	fords := []*ford{w.ford(w.gateways[0]), w.ford(w.gateways[1])}
	s := w.connected("acme")
	old := w.echo(s, "acme")
	from, to := w.serves()
	still := fords[0]
	if from == w.gateways[1] {
		still = fords[1]
	}
	up, err := s.dial("tcp", serverAddr+":8082")
	must(t, err)
	defer up.Close()
	uploaded := make(chan error, 1)
	go func() { uploaded <- upload(up, 32<<20) }()
	time.Sleep(20 * time.Millisecond)
	still.still.Store(true)
	began := time.Now()
	e := w.echo(s, "acme")
	served := time.Since(began)
	await(t, to, "starling_gateway_flows 1\n")                 // by the other, while the first says nothing
	time.Sleep(time.Until(began.Add(1600 * time.Millisecond))) // twice of what other connections between nodes outlive
	still.still.Store(false)
	for _, e := range []*echo{old, e} {
		if err := e.once(); err != nil {
			t.Errorf("a connection after the silence: %v", err)
		}
	}
	if err := <-uploaded; err != nil {
		t.Errorf("the upload: %v\n%s%s%s", err, host(w), numbers(from), numbers(to))
	}
	t.Logf("a new connection was served after %v of silence", served.Round(time.Millisecond))
}

// A gateway that is killed says nothing ever: its flows are reset, and the host knows why.
func TestFlowsOfASilentGatewayAreCounted(t *testing.T) {
	w := newWorld(t, 1, nil)
	f := w.ford(w.gateways[0])
	e := w.echo(w.connected("acme"), "acme")
	f.still.Store(true)
	must(t, e.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := io.ReadFull(e.conn, make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection: %v", err)
	}
	f.still.Store(false)
	awaitHost(t, w, `starling_tunnel_ended_total{why="silent"} 1`)
}

package gateway

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/uplink"
)

// The words of State.State.
const (
	wordUp     = "plugged in"
	wordDown   = "no carrier"
	wordFailed = "failed"
)

// A State is what an operator is told of one uplink.
type State struct {
	Network   starling.NetworkRef
	How       string         // as uplink.Uplink says it
	State     string         // "plugged in", "no carrier" (plugged in, and nothing at the other end), "failed"
	Reason    string         // why it failed
	Note      string         // what the catalog says against it; "" for nothing
	Namespace string         // where its sockets are made; "" when it failed
	Addresses []netip.Prefix // that the file gives it; none of a namespace
	Since     time.Time      // of this state
}

// An order is what Replug asks of the goroutine that keeps the uplinks.
type order struct {
	uplinks map[starling.NetworkRef]uplink.Uplink
	done    chan struct{}
}

// openUplinks takes away what gateways before this one have left, and plugs in what is wanted.
func (g *Gateway) openUplinks() error {
	if g.cfg.Board.Home == nil {
		home, err := netns.Open(uplink.Host)
		if err != nil {
			return starling.Errorf(starling.Internal, "open uplinks", "%w", err)
		}
		g.home, g.cfg.Board.Home = home, home
	}
	if err := g.knowMachine(); err != nil {
		return err
	}
	if g.cfg.Board.Dir != "" {
		swept, err := g.cfg.Board.Sweep()
		if err != nil {
			g.cfg.Log.Warn("not all was taken away that a gateway before has left", "error", err)
		}
		for _, ref := range swept {
			g.cfg.Log.Info("took away what a gateway before has left of a network", "network", uplink.Name(ref))
		}
	}
	g.replug(g.cfg.Uplinks)
	return nil
}

// closeUplinks takes everything away that no other gateway uses.
func (g *Gateway) closeUplinks() error {
	errs := []error{g.pull(slices.Collect(maps.Values(g.wanted))...)}
	clear(g.wanted)
	if g.home != nil {
		errs = append(errs, g.home.Close())
		g.home = nil
	}
	return errors.Join(errs...)
}

// Replug makes uplinks, each of which has been validated, those that are wanted, and returns when each was tried. Flows of networks that stay as they
// are go on; those of networks that go, or are plugged in otherwise, are reset. What cannot be plugged in is no error: Uplinks says so, and it is
// tried again. Unavailable when the gateway ends or ctx does.
func (g *Gateway) Replug(ctx context.Context, uplinks map[starling.NetworkRef]uplink.Uplink) error {
	o := order{maps.Clone(uplinks), make(chan struct{})}
	ended := starling.Errorf(starling.Unavailable, "plug networks in anew", "the gateway ends")
	select {
	case g.orders <- o:
	case <-g.group.Context().Done():
		return ended
	case <-ctx.Done():
		return starling.Errorf(starling.Unavailable, "plug networks in anew", "%w", ctx.Err())
	}
	select {
	case <-o.done:
		return nil
	case <-g.group.Context().Done():
		return ended
	case <-ctx.Done():
		return starling.Errorf(starling.Unavailable, "plug networks in anew", "%w", ctx.Err())
	}
}

// Uplinks returns the state of every uplink that is wanted, in the order of names. Do not change it.
func (g *Gateway) Uplinks() []State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.states
}

// failed counts the uplinks that are not plugged in.
func (g *Gateway) failed() (n int) {
	for _, s := range g.Uplinks() {
		if s.State == wordFailed {
			n++
		}
	}
	return n
}

// keepUplinks plugs in what is wanted as it comes to be there, and what is wanted anew.
func (g *Gateway) keepUplinks(ctx context.Context) {
	tick := time.NewTicker(g.cfg.TryTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-g.orders:
			g.replug(o.uplinks)
			close(o.done)
		case <-tick.C:
			if err := g.knowMachine(); err != nil {
				g.cfg.Log.Warn("own addresses not read", "error", err)
			}
			for _, w := range g.wanted {
				g.look(w)
			}
			g.note(ctx)
			g.tell()
		}
	}
}

// knowMachine reads the machine's own addresses.
func (g *Gateway) knowMachine() error {
	addrs, err := netns.Addresses(g.cfg.Board.Home)
	if err != nil {
		return starling.Errorf(starling.Internal, "open uplinks", "read own addresses: %w", err)
	}
	if before := g.own.Load(); before == nil || !slices.Equal(before.addrs, addrs) {
		g.own.Store(&own{addrs})
	}
	return nil
}

// replug pulls out what is not wanted any more, or otherwise, and plugs in what is.
func (g *Gateway) replug(want map[starling.NetworkRef]uplink.Uplink) {
	have := map[starling.NetworkRef]uplink.Uplink{}
	for ref, w := range g.wanted {
		have[ref] = w.uplink
	}
	change := uplink.Plan(have, want)
	var drop []*wanted
	for _, ref := range change.Drop {
		drop = append(drop, g.wanted[ref])
		delete(g.wanted, ref)
	}
	if err := g.pull(drop...); err != nil {
		g.cfg.Log.Warn("networks not pulled out whole", "error", err)
	}
	for _, ref := range change.Drop {
		if _, again := want[ref]; !again {
			g.m.forget(ref)
		}
	}
	for _, ref := range change.Plug {
		u := want[ref]
		w := &wanted{uplink: u, state: State{Network: ref, How: u.String(), Addresses: u.Addresses}}
		g.wanted[ref] = w
		g.plugIn(w)
	}
	for _, ref := range change.Keep {
		w := g.wanted[ref]
		if w.uplink = want[ref]; w.plug != nil {
			w.plug.setServers(w.uplink.Servers)
		}
	}
	g.tell()
}

// publish changes what flows find.
func (g *Gateway) publish(change func(map[starling.NetworkRef]*plug)) {
	next := maps.Clone(*g.plugs.Load())
	change(next)
	g.plugs.Store(&next)
}

// tell makes the states of all uplinks what Uplinks returns.
func (g *Gateway) tell() {
	states := make([]State, 0, len(g.wanted))
	for _, w := range g.wanted {
		states = append(states, w.state)
	}
	slices.SortFunc(states, func(a, b State) int { return strings.Compare(a.Network.String(), b.Network.String()) })
	g.mu.Lock()
	g.states = states
	g.mu.Unlock()
}

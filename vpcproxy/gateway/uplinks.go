package gateway

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/plugboard"
	"starling/vpcproxy/uplink"
)

const (
	noteEvery  = 30 * time.Second // how often the catalog is asked for a network
	notesMax   = 64               // networks that it is asked for at once
	noteTime   = time.Second      // for the catalog to answer
	lookTries  = 4                // what works is looked at as often as what does not is tried this many times
	wordFailed = "failed"         // the words of State.State
	wordUp     = "plugged in"
	wordDown   = "no carrier"
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

// A line is one uplink that is wanted.
type line struct {
	uplink uplink.Uplink
	end    *plugboard.Plug // nil while it is not plugged in
	plug   *plug           // what flows know of it; nil with end
	state  State
	looked time.Time
	noted  time.Time
}

// A want is a question of Replug.
type want struct {
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
	errs := []error{g.pull(slices.Collect(maps.Values(g.lines))...)}
	clear(g.lines)
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
	w := want{maps.Clone(uplinks), make(chan struct{})}
	ended := starling.Errorf(starling.Unavailable, "plug networks in anew", "the gateway ends")
	select {
	case g.wants <- w:
	case <-g.group.Context().Done():
		return ended
	case <-ctx.Done():
		return starling.Errorf(starling.Unavailable, "plug networks in anew", "%w", ctx.Err())
	}
	select {
	case <-w.done:
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
		case w := <-g.wants:
			g.replug(w.uplinks)
			close(w.done)
		case <-tick.C:
			if err := g.knowMachine(); err != nil {
				g.cfg.Log.Warn("own addresses not read", "error", err)
			}
			for _, l := range g.lines {
				g.look(l)
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
func (g *Gateway) replug(wanted map[starling.NetworkRef]uplink.Uplink) {
	have := map[starling.NetworkRef]uplink.Uplink{}
	for ref, l := range g.lines {
		have[ref] = l.uplink
	}
	change := uplink.Plan(have, wanted)
	var drop []*line
	for _, ref := range change.Drop {
		drop = append(drop, g.lines[ref])
		delete(g.lines, ref)
	}
	if err := g.pull(drop...); err != nil {
		g.cfg.Log.Warn("networks not pulled out whole", "error", err)
	}
	for _, ref := range change.Drop {
		if _, again := wanted[ref]; !again {
			g.m.forget(ref)
		}
	}
	for _, ref := range change.Plug {
		u := wanted[ref]
		l := &line{uplink: u, state: State{Network: ref, How: u.String(), Addresses: u.Addresses}}
		g.lines[ref] = l
		g.plugIn(l)
	}
	for _, ref := range change.Keep {
		l := g.lines[ref]
		if l.uplink = wanted[ref]; l.plug != nil {
			l.plug.setServers(l.uplink.Servers)
		}
	}
	g.tell()
}

// plugIn tries to plug one network in.
func (g *Gateway) plugIn(l *line) {
	ref := l.state.Network
	end, err := g.cfg.Board.Plug(ref, l.uplink)
	if err == nil {
		var p *plug
		if p, err = g.newPlug(ref, l.uplink, end.Namespace()); err == nil {
			l.end, l.plug, l.state.Namespace = end, p, end.Where()
			g.publish(func(m map[starling.NetworkRef]*plug) { m[ref] = p })
			g.check(l)
			return
		}
		err = errors.Join(err, g.cfg.Board.Pull(end))
	}
	l.move(g, wordFailed, err.Error())
}

// pull ends networks' flows and takes the networks away, of those that are plugged in.
func (g *Gateway) pull(lines ...*line) error {
	var ends []*plugboard.Plug
	g.publish(func(m map[starling.NetworkRef]*plug) {
		for _, l := range lines {
			if l.end != nil {
				delete(m, l.state.Network)
			}
		}
	})
	for _, l := range lines {
		if l.end == nil {
			continue
		}
		l.plug.cancel()
		ends = append(ends, l.end)
		l.end, l.plug, l.state.Namespace = nil, nil, ""
		g.cfg.Log.Info("network pulled out", "network", uplink.Name(l.state.Network), "how", l.state.How)
	}
	return g.cfg.Board.Pull(ends...)
}

// publish changes what flows find.
func (g *Gateway) publish(change func(map[starling.NetworkRef]*plug)) {
	next := maps.Clone(*g.plugs.Load())
	change(next)
	g.plugs.Store(&next)
}

// look sees whether a network is plugged in still, and plugs it in when it is not.
func (g *Gateway) look(l *line) {
	switch {
	case l.end == nil:
		g.plugIn(l)
	case l.state.State != wordUp || g.cfg.Now().Sub(l.looked) >= lookTries*g.cfg.TryTime:
		g.check(l)
	}
}

// check looks at the device of a network that is plugged in. Its kernel takes up to a second to see that there is another end.
func (g *Gateway) check(l *line) {
	l.looked = g.cfg.Now()
	switch carrier, err := l.end.Check(); {
	case err != nil:
		l.move(g, wordFailed, errors.Join(err, g.pull(l)).Error())
	case carrier:
		l.move(g, wordUp, "")
	default:
		l.move(g, wordDown, "")
	}
}

// move makes state and reason the line's, and says so when they are others than before.
func (l *line) move(g *Gateway, state, reason string) {
	if l.state.State == state && l.state.Reason == reason {
		return
	}
	l.state.State, l.state.Reason, l.state.Since = state, reason, g.cfg.Now()
	level := slog.LevelInfo
	if state != wordUp {
		level = slog.LevelWarn
	}
	g.cfg.Log.Log(context.Background(), level, "network "+state, "network", uplink.Name(l.state.Network), "how", l.state.How, "namespace", l.state.Namespace, "reason", reason)
}

// note asks the catalog for networks that it was not asked for lately: an operator who has mistyped a name should hear of it.
func (g *Gateway) note(ctx context.Context) {
	now, asked := g.cfg.Now(), 0
	for ref, l := range g.lines {
		if ref == internet || now.Sub(l.noted) < noteEvery {
			continue
		}
		if asked++; asked > notesMax {
			return
		}
		limited, cancel := context.WithTimeout(ctx, noteTime)
		n, err := g.cfg.Network(limited, ref)
		cancel()
		if err != nil && starling.KindOf(err) != starling.NotFound {
			return // no manager can be asked now
		}
		l.noted = now
		if note := noteOf(n, err, l.uplink); note != l.state.Note {
			l.state.Note = note
			if note != "" {
				g.cfg.Log.Warn("uplink: "+note, "network", uplink.Name(ref))
			}
		}
	}
}

// noteOf says what the catalog's network has against an uplink.
func noteOf(n *starling.Network, err error, u uplink.Uplink) string {
	if err != nil {
		return "the cluster has no such account or network: starling network create"
	}
	egress, bad := netip.ParseAddr(n.Egress)
	if bad != nil || u.Kind() == uplink.Namespace || slices.ContainsFunc(u.Addresses, func(p netip.Prefix) bool { return p.Addr() == egress }) {
		return ""
	}
	return "the network's source address " + n.Egress + " is none of the uplink's addresses: every connection fails"
}

// tell makes the states of all lines what Uplinks returns.
func (g *Gateway) tell() {
	states := make([]State, 0, len(g.lines))
	for _, l := range g.lines {
		states = append(states, l.state)
	}
	slices.SortFunc(states, func(a, b State) int { return strings.Compare(a.Network.String(), b.Network.String()) })
	g.mu.Lock()
	g.states = states
	g.mu.Unlock()
}

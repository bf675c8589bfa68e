package gateway

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"starling"
	"starling/vpcproxy/plugboard"
	"starling/vpcproxy/uplink"
)

// lookTries is how much seldomer a device that works is looked at than one that does not.
const lookTries = 4

// A wanted is one uplink that is wanted, and what came of it.
type wanted struct {
	uplink uplink.Uplink
	end    *plugboard.Plug // nil while it is not plugged in
	plug   *plug           // what flows know of it; nil with end
	state  State
	looked time.Time
	noted  time.Time
}

// plugIn tries to plug one network in.
func (g *Gateway) plugIn(w *wanted) {
	ref := w.state.Network
	end, err := g.cfg.Board.Plug(ref, w.uplink)
	if err == nil {
		var p *plug
		if p, err = g.newPlug(ref, w.uplink, end.Namespace()); err == nil {
			w.end, w.plug, w.state.Namespace = end, p, end.Where()
			g.publish(func(m map[starling.NetworkRef]*plug) { m[ref] = p })
			g.check(w)
			return
		}
		err = errors.Join(err, g.cfg.Board.Pull(end))
	}
	w.move(g, wordFailed, err.Error())
}

// pull ends networks' flows and takes the networks away, of those that are plugged in.
func (g *Gateway) pull(all ...*wanted) error {
	var ends []*plugboard.Plug
	g.publish(func(m map[starling.NetworkRef]*plug) {
		for _, w := range all {
			if w.end != nil {
				delete(m, w.state.Network)
			}
		}
	})
	for _, w := range all {
		if w.end == nil {
			continue
		}
		w.plug.cancel()
		ends = append(ends, w.end)
		w.end, w.plug, w.state.Namespace = nil, nil, ""
		g.cfg.Log.Info("network pulled out", "network", uplink.Name(w.state.Network), "how", w.state.How)
	}
	return g.cfg.Board.Pull(ends...)
}

// look sees whether a network is plugged in still, and plugs it in when it is not.
func (g *Gateway) look(w *wanted) {
	switch {
	case w.end == nil:
		g.plugIn(w)
	case w.state.State != wordUp || g.cfg.Now().Sub(w.looked) >= lookTries*g.cfg.TryTime:
		g.check(w)
	}
}

// check looks at the device of a network that is plugged in. Its kernel takes up to a second to see that there is another end.
func (g *Gateway) check(w *wanted) {
	w.looked = g.cfg.Now()
	switch carrier, err := w.end.Check(); {
	case err != nil:
		w.move(g, wordFailed, errors.Join(err, g.pull(w)).Error())
	case carrier:
		w.move(g, wordUp, "")
	default:
		w.move(g, wordDown, "")
	}
}

// move makes state and reason the uplink's, and says so when they are others than before.
func (w *wanted) move(g *Gateway, state, reason string) {
	if w.state.State == state && w.state.Reason == reason {
		return
	}
	w.state.State, w.state.Reason, w.state.Since = state, reason, g.cfg.Now()
	level := slog.LevelInfo
	if state != wordUp {
		level = slog.LevelWarn
	}
	g.cfg.Log.Log(context.Background(), level, "network "+state, "network", uplink.Name(w.state.Network), "how", w.state.How, "namespace", w.state.Namespace, "reason", reason)
}

package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"starling"
	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/policy"
	"starling/vpcproxy/resume"
)

// An attempt is one flow from its header on.
type attempt struct {
	header.Header
	gateway *Gateway
	host    starling.NodeID
	began   time.Time
	token   resume.Token // zero when the flow ends with this gateway
	grant   grant.Grant
	plug    *plug
	network *starling.Network // nil for internet
	rules   *policy.Rules
	counted bool
}

// internet is what the uplink of the public network is named by.
var internet = starling.NetworkRef{Name: starling.Internet}

// admit checks whose the flow is, how many there are, and where it goes, in this order: so that refusals of addresses are
// bounded by the limits, too.
func (f *attempt) admit(ctx context.Context) header.Answer {
	g := f.gateway
	if !g.Ready() {
		f.seldom("no manager has told the key of grants yet")
		return header.NoUplink // another gateway may know it
	}
	var err error
	if f.grant, err = g.open(f.Header.Grant, f.host); err != nil {
		f.seldom("grant: " + err.Error())
		return header.BadGrant
	}
	if answer := f.enter(ctx); answer != header.Open {
		return answer
	}
	if f.Kind == header.DNS {
		return header.Open
	}
	if v := f.rules.Check(f.To); v != policy.Permitted {
		f.note(slog.LevelWarn, "flow denied", string(v))
		f.end()
		return header.Denied
	}
	return header.Open
}

// enter finds the network that the flow's grant names, and takes the flow's place in the table.
func (f *attempt) enter(ctx context.Context) header.Answer {
	limits, err := f.plugIn(ctx)
	if err == nil {
		f.rules, err = f.gateway.rules(f.plug, f.network)
	}
	if err != nil {
		f.seldom(err.Error())
		return header.NoUplink
	}
	if !f.count(limits) {
		return header.Limit
	}
	return header.Open
}

// plugIn finds the network that the flow's grant names and returns its limits.
func (f *attempt) plugIn(ctx context.Context) (flowtable.Limits, error) {
	g := f.gateway
	limits := g.cfg.InternetLimits
	if f.plug = g.plug(f.grant.Ref()); f.plug == nil {
		return limits, starling.Errorf(starling.NotFound, "enter network", "this gateway is not plugged into the network")
	}
	if f.grant.Network != starling.Internet {
		var err error
		if f.network, err = g.cfg.Network(ctx, f.grant.Ref()); err != nil {
			return limits, starling.Errorf(starling.KindOf(err), "enter network", "network not known: %w", err)
		}
		limits = flowtable.Limits{Conns: f.network.ConnMax, Rate: f.network.RateMax}
	}
	return limits, nil
}

// plug returns how the gateway is plugged into an account's network; nil when it is not.
func (g *Gateway) plug(ref starling.NetworkRef) *plug {
	if ref.Name == starling.Internet {
		ref = internet
	}
	return (*g.plugs.Load())[ref]
}

func (f *attempt) key() flowtable.Key {
	return flowtable.Key{Function: f.grant.Function, Network: f.grant.Network}
}

// count takes the flow's place in the table.
func (f *attempt) count(limits flowtable.Limits) bool {
	g, now := f.gateway, f.gateway.cfg.Now()
	g.mu.Lock()
	refusal := g.table.Begin(now, f.key(), limits)
	g.mu.Unlock()
	if refusal != flowtable.Admitted {
		f.seldom("limit: " + string(refusal))
	}
	f.counted = refusal == flowtable.Admitted
	return f.counted
}

// end gives the flow's place back.
func (f *attempt) end() {
	if f.counted {
		f.counted = false
		f.gateway.mu.Lock()
		f.gateway.table.End(f.key())
		f.gateway.mu.Unlock()
	}
}

// seldom writes the audit line of a flow that no limit has let through, and whose kind nothing bounds: one in a second.
func (f *attempt) seldom(why string) {
	g, now := f.gateway, f.gateway.cfg.Now()
	g.mu.Lock()
	tell := now.Sub(g.quiet) >= time.Second
	if tell {
		g.quiet = now
	}
	g.mu.Unlock()
	if tell {
		f.note(slog.LevelWarn, "flow denied", why)
	}
}

// note writes the audit line of a flow.
func (f *attempt) note(level slog.Level, what, why string) {
	f.gateway.cfg.Log.Log(context.Background(), level, what, "kind", f.Kind.String(), "to", f.To, "why", why, "network", f.grant.Ref(), "function", f.grant.Function,
		"version", f.grant.Version, "instance", f.grant.Instance, "host", f.host)
}

// dial connects in the network's namespace.
func (f *attempt) dial() (net.Conn, header.Answer) {
	network := "tcp"
	if f.Kind == header.UDP {
		network = "udp"
	}
	began := time.Now()
	c, err := netns.Dial(f.plug.ns, network, f.from(f.To.Addr()), f.To, f.gateway.cfg.DialTime)
	if err != nil {
		answer := answerOf(err)
		if answer == header.Limit {
			f.seldom("limit of the gateway: " + err.Error())
		}
		return nil, answer
	}
	f.gateway.m.dialled.UpdateDuration(began)
	return c, header.Open
}

// from returns the fixed source address of the network for a destination of the same family.
func (f *attempt) from(to netip.Addr) (a netip.Addr) {
	if f.network == nil || f.network.Egress == "" {
		return a
	}
	if a, err := netip.ParseAddr(f.network.Egress); err == nil && a.Is4() == to.Unmap().Is4() {
		return a
	}
	return a
}

// open checks a grant, once for each.
func (g *Gateway) open(raw []byte, host starling.NodeID) (grant.Grant, error) {
	k := g.key.Load()
	now := g.cfg.Now().Add(k.ahead)
	g.mu.Lock()
	known, ok := g.grants[string(raw)]
	g.mu.Unlock()
	if ok && known.Host == host && now.Unix() <= known.Until {
		return known, nil
	}
	fresh, err := grant.Open(k.public, raw, host, now)
	if err != nil {
		return fresh, err
	}
	g.mu.Lock()
	if len(g.grants) >= grantsMax {
		clear(g.grants)
	}
	g.grants[string(raw)] = fresh
	g.mu.Unlock()
	return fresh, nil
}

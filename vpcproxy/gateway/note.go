package gateway

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"starling"
	"starling/vpcproxy/uplink"
)

const (
	noteEvery = 30 * time.Second // how often the catalog is asked for a network
	notesMax  = 64               // networks that it is asked for at once
	noteTime  = time.Second      // for the catalog to answer
)

// note asks the catalog for networks that it was not asked for lately: an operator who has mistyped a name should hear of it.
func (g *Gateway) note(ctx context.Context) {
	now, asked := g.cfg.Now(), 0
	for ref, w := range g.wanted {
		if ref == internet || now.Sub(w.noted) < noteEvery {
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
		w.noted = now
		if note := noteOf(n, err, w.uplink); note != w.state.Note {
			w.state.Note = note
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

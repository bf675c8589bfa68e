package gateway

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"starling"
	"starling/transport"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
	"starling/vpcproxy/policy"
	"starling/vpcproxy/probe"
)

// ServeProbe answers one question of a frontend on a stream of transport.ChannelProbe: what a connection from a network would meet.
// There is no grant: a frontend vouches for the accounts that it knows by their keys, as it does when it calls their functions. A
// probe counts as a flow of the account and the network.
func (g *Gateway) ServeProbe(s transport.Stream) {
	if s.SetReadDeadline(time.Now().Add(headTime)) != nil {
		return
	}
	q, err := probe.Read(s)
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(g.group.Context())
	defer cancel()
	defer context.AfterFunc(ctx, s.Cancel)()
	f := &attempt{gateway: g, Header: header.Header{Kind: header.Test}, host: s.Peer().Node,
		grant: grant.Grant{Attachment: starling.Attachment{Function: starling.FunctionRef{Account: q.Network.Account}, Network: q.Network.Name}}}
	if probe.Write(s, f.probe(ctx, q)) == nil {
		_ = s.CloseWrite() // fails when the frontend is gone
	}
}

// probe connects and closes.
func (f *attempt) probe(ctx context.Context, q probe.Question) (a probe.Answer) {
	if a.Answer = f.enter(ctx); a.Answer != header.Open {
		f.gateway.m.refused(a.Answer)
		a.Reason = because(a.Answer)
		return a
	}
	defer f.end()
	f.gateway.m.begun(f.Kind)
	if a.Addresses, a.Reason = f.addresses(q.Host); a.Reason != "" {
		a.Answer = header.Unreachable
		return a
	}
	f.To = policy.Plain(netip.AddrPortFrom(a.Addresses[0], q.Port))
	if v := f.rules.Check(f.To); v != policy.Permitted {
		f.note(slog.LevelWarn, "flow denied", string(v))
		f.gateway.m.refused(header.Denied)
		a.Answer, a.Reason = header.Denied, v.Because()
		return a
	}
	began := f.gateway.cfg.Now()
	c, answer := f.dial()
	a.Answer, a.Took = answer, f.gateway.cfg.Now().Sub(began)
	if answer != header.Open {
		a.Reason = because(answer)
		return a
	}
	c.Close()
	return a
}

// because says for people why a connection was not made.
func because(a header.Answer) string {
	switch a {
	case header.Limit:
		return "the network or the account has as many flows as it may have, or begins them too fast"
	case header.NoUplink:
		return "no living gateway is plugged into the network, or none knows it yet: the operator's part, starling node --uplinks"
	case header.Refused:
		return "nobody listens there"
	case header.TimedOut:
		return "no answer from there"
	case header.Unreachable:
		return "the gateway's uplink has no way there"
	}
	return a.String()
}

// addresses returns what a host stands for in the network, or why it stands for nothing.
func (f *attempt) addresses(host string) ([]netip.Addr, string) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, ""
	}
	name, err := dnsmessage.NewName(strings.TrimSuffix(host, ".") + ".")
	if err != nil {
		return nil, "it is no name: " + err.Error()
	}
	if len(f.servers()) == 0 {
		return nil, "the network lists no name server that it may ask: starling network create --dns"
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	question, err := m.Pack()
	if err != nil {
		return nil, "it is no name: " + err.Error()
	}
	if err := m.Unpack(f.resolve(question)); err != nil {
		return nil, "the name server's answer is not understood: " + err.Error()
	}
	var out []netip.Addr
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			out = append(out, netip.AddrFrom4(a.A))
		}
	}
	if len(out) == 0 {
		return nil, "the network's name servers know no IPv4 address of it (" + strings.TrimPrefix(m.RCode.String(), "RCode") + ")"
	}
	return out[:min(len(out), addressesMax)], ""
}

// addressesMax bounds what an answer lists of a name.
const addressesMax = 16

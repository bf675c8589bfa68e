package vpcproxy

import (
	"fmt"
	"testing"

	"starling"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/header"
	"starling/vpcproxy/policy"
	"starling/vpcproxy/probe"
	"starling/vpcproxy/uplink"
)

func (w *world) ask(account starling.AccountID, host string, port uint16) (probe.Answer, error) {
	c := &probe.Client{Open: w.host.Open, Gateways: w.alive}
	return c.Ask(w.t.Context(), probe.Question{Network: starling.NetworkRef{Account: account, Name: "db"}, Host: host, Port: port})
}

// A probe meets what a function's connection would: the rules, the network's names, whoever listens; and it says why not.
func TestProbeSaysWhatAConnectionWouldMeet(t *testing.T) {
	w := newWorld(t, 1, nil)
	for _, c := range []struct {
		host   string
		port   uint16
		is     string // first address
		answer header.Answer
		reason string
	}{
		{serverAddr, 8080, serverAddr, header.Open, ""},
		{"db.internal", 8080, serverAddr, header.Open, ""},
		{"db.internal.", 8080, serverAddr, header.Open, ""},
		{"::ffff:" + serverAddr, 8080, "::ffff:" + serverAddr, header.Open, ""},
		{"db.internal", 81, serverAddr, header.Refused, "nobody listens there"},
		{"rebind.evil", 8080, "169.254.169.254", header.Denied, policy.Reserved.Because()},
		{"127.0.0.1", 8080, "127.0.0.1", header.Denied, policy.Reserved.Because()},
		{"10.7.0.66", 8080, "10.7.0.66", header.Denied, policy.Denied.Because()},
		{"::ffff:10.7.0.66", 8080, "::ffff:10.7.0.66", header.Denied, policy.Denied.Because()},
		{"10.7.0.99", 8080, "10.7.0.99", header.Denied, policy.Cluster.Because()},
		{uplinkAddr, 8080, uplinkAddr, header.Denied, policy.Cluster.Because()},
		{"192.168.5.5", 8080, "192.168.5.5", header.Denied, policy.Private.Because()},
		{"8.8.8.8", 53, "8.8.8.8", header.Denied, policy.Outside.Because()},
	} {
		a, err := w.ask("acme", c.host, c.port)
		if err != nil || a.Answer != c.answer || a.Reason != c.reason || len(a.Addresses) == 0 || a.Addresses[0].String() != c.is || a.Gateway != 10 {
			t.Errorf("%s port %d: %+v, %v", c.host, c.port, a, err)
		}
		if tried := c.answer != header.Denied; tried != (a.Took > 0) {
			t.Errorf("%s port %d: connecting took %v", c.host, c.port, a.Took)
		}
	}
}

// What is wrong before any address is: the name, the network, its gateways.
func TestProbeSaysWhyThereIsNothingToConnectTo(t *testing.T) {
	n := 0
	w := newWorld(t, 2, func(c *gateway.Config) {
		if n++; n == 1 {
			c.Uplinks = map[starling.NetworkRef]uplink.Uplink{}
		}
	})
	if a, err := w.ask("acme", serverAddr, 8080); err != nil || a.Answer != header.Open || a.Gateway != 11 {
		t.Errorf("beside a gateway that is not plugged in: %+v, %v", a, err)
	}
	if a, err := w.ask("acme", fmt.Sprintf("%064d.internal", 0), 8080); err != nil || a.Answer != header.Unreachable || a.Reason == "" {
		t.Errorf("a label that is too long: %+v, %v", a, err)
	}
	if a, err := w.ask("nobody", serverAddr, 8080); err != nil || a.Answer != header.NoUplink || a.Reason == "" {
		t.Errorf("an account without the network: %+v, %v", a, err)
	}
	if _, err := w.ask("acme", serverAddr, 0); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("port 0: %v", err)
	}
	for _, g := range w.gateways {
		g.dead.Store(true)
	}
	if _, err := w.ask("acme", serverAddr, 8080); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("without gateways: %v", err)
	}
}

// Probes count as flows: they are no way around the rate of an account.
func TestProbesAreCounted(t *testing.T) {
	w := newWorld(t, 1, nil)
	ref := starling.NetworkRef{Account: "acme", Name: "db"}
	few := *w.networks[ref]
	few.RateMax = 1
	w.networks[ref] = &few
	limited := false
	for range 20 {
		a, err := w.ask("acme", serverAddr, 8080)
		if err != nil {
			t.Fatal(err)
		}
		limited = limited || a.Answer == header.Limit
	}
	if !limited {
		t.Error("twenty probes at once where one a second may begin, and none is refused")
	}
	if a, err := w.ask("zeta", serverAddr, 8080); err != nil || a.Answer != header.Open {
		t.Errorf("the other account: %+v, %v", a, err)
	}
}

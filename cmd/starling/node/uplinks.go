package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"starling"
	"starling/frontend/protocol"
	"starling/transport"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/plugboard"
	"starling/vpcproxy/uplink"
)

const (
	uplinkRecords    = "/run/starling/uplinks" // what the gateways of this machine have plugged in, for as long as it runs
	uplinkNamespaces = "/run/netns"            // where "ip netns" shows namespaces
	reloadTime       = 5 * time.Minute         // for all networks of a file to be tried
)

// ReadUplinks reads the file of --uplinks; none for "". The error is Invalid and names file and line.
func ReadUplinks(path string) (map[starling.NetworkRef]uplink.Uplink, error) {
	const op = "read uplinks"
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "--uplinks: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, uplink.FileMax+1))
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "--uplinks: %w", err)
	}
	out, err := uplink.Parse(text)
	var e *starling.Error
	if errors.As(err, &e) {
		return nil, starling.Errorf(starling.Invalid, op, "--uplinks %s: %s", path, e.Message)
	}
	return out, err
}

// openGateway lets flows out, on a node with that role.
func (n *Node) openGateway(context.Context) error {
	if !n.cfg.Roles.Has(starling.RoleGateway) {
		return nil
	}
	uplinks, err := ReadUplinks(n.cfg.Uplinks)
	if err != nil {
		return err
	}
	g := gateway.New(gateway.Config{Uplinks: uplinks, Network: func(ctx context.Context, ref starling.NetworkRef) (*starling.Network, error) {
		return n.view.Network(ctx, ref)
	},
		Board: plugboard.Board{Dir: uplinkRecords, Namespaces: uplinkNamespaces, Scope: fingerprint(n.id.CA())},
		Key:   n.desk.Key, Cluster: n.clusterAddrs, Log: n.log("gateway"),
		Handover: gateway.Handover{Dir: n.cfg.Handover, Self: n.ID(), Successors: n.successors}})
	n.endpoint.Handle(transport.ChannelTunnel, g.Serve)
	n.endpoint.Handle(transport.ChannelProbe, g.ServeProbe)
	if err := g.Open(); err != nil {
		return fmt.Errorf("open gateway: %w", err)
	}
	n.opened("gateway", g.Metrics(), g.Close)
	n.gateway.Store(g)
	return nil
}

// Reloads reports whether such a node has a file of uplinks, which Reload reads again.
func (c Config) Reloads() bool { return c.Roles.Has(starling.RoleGateway) && c.Uplinks != "" }

// Reload reads the file of uplinks again. One that is not right in every line changes nothing; it is told in the log and to who asks for the uplinks.
func (n *Node) Reload(ctx context.Context) {
	log := n.log("gateway")
	uplinks, err := ReadUplinks(n.cfg.Uplinks)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, reloadTime)
		err = n.gateway.Load().Replug(limited, uplinks)
		cancel()
	}
	refused := ""
	if err != nil {
		refused = err.Error()
		log.Error("uplinks not reloaded: what was plugged in stays", slog.Any("error", err))
	} else {
		log.Info("uplinks reloaded", slog.Int("networks", len(uplinks)))
	}
	n.refused.Store(&refused)
}

// uplinks tells operators how this gateway is plugged in; nothing on a node that is none, or not yet.
func (n *Node) uplinks() (out protocol.Uplinks) {
	out.File, out.Uplinks = n.cfg.Uplinks, []protocol.Uplink{}
	if refused := n.refused.Load(); refused != nil {
		out.Refused = *refused
	}
	g := n.gateway.Load()
	if g == nil {
		return out
	}
	for _, s := range g.Uplinks() {
		u := protocol.Uplink{Network: uplink.Name(s.Network), How: s.How, State: s.State, Reason: s.Reason, Note: s.Note, Namespace: s.Namespace, Since: s.Since}
		for _, a := range s.Addresses {
			u.Addresses = append(u.Addresses, a.String())
		}
		out.Uplinks = append(out.Uplinks, u)
	}
	return out
}

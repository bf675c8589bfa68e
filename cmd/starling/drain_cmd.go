package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/protocol"
)

// findNode finds a member by its id ("n2" or "2") or its name.
func (a *app) findNode(ctx context.Context, name string) (protocol.Node, error) {
	list, err := a.client().Nodes(ctx)
	if err != nil {
		return protocol.Node{}, err
	}
	var found []protocol.Node
	for _, n := range list {
		if n.ID.String() == name || strings.TrimPrefix(n.ID.String(), "n") == name {
			return n, nil
		}
		if n.Name == name {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return protocol.Node{}, starling.Errorf(starling.NotFound, "find node", "no node is called %q: see 'starling nodes'", name).With("NoNode")
	case 1:
		return found[0], nil
	}
	return protocol.Node{}, starling.Errorf(starling.Conflict, "find node", "%d nodes are called %q: use the id of one, like %s", len(found), name, found[0].ID)
}

func nodeDrain(a *app) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "drain NODE", Short: "Move everything off a node and keep it empty (admin)", Args: cobra.ExactArgs(1),
		Long: `Drain marks a node: its partitions move to others without a pause that callers see, no new instances are placed on it, and
a manager that leads hands the lead on. A gateway gives its live connections to another on the same machine (starling node --handover);
without one they stay until they end. It shows what is left until nothing is. 'starling node undrain' takes the mark off.`,
		Example: "  starling node drain n2\n  starling node drain host-b --wait 5m\n  starling node drain n2 --wait 0",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := a.findNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.client().DrainNode(cmd.Context(), n.ID, true); err != nil {
				return err
			}
			if wait == 0 {
				return a.say(protocol.Draining{Draining: true}, "%s is being drained.", n.ID)
			}
			return a.awaitEmpty(cmd.Context(), n.ID, wait)
		}}
	c.Flags().DurationVar(&wait, "wait", 2*time.Minute, "longest wait until it is empty; 0 to return at once")
	return c
}

// settleTime is how long a node must have been empty. Who places a call, an instance or a flow on it may not have heard yet that it is being
// drained, and neither may the node, whose heartbeats say what it has.
const settleTime = time.Second

// A leftover is what a node still has.
type leftover struct {
	parts            int
	instances, flows uint32
	known            bool // a manager hears the node, or it is down
}

func (l leftover) empty() bool { return l.known && l.parts == 0 && l.instances == 0 && l.flows == 0 }

func (l leftover) String() string {
	return fmt.Sprintf("%d partitions, %d instances, %d flows", l.parts, l.instances, l.flows)
}

func (a *app) leftOn(ctx context.Context, id starling.NodeID) (l leftover, err error) {
	n, err := a.findNode(ctx, id.String())
	if err != nil {
		return l, err
	}
	list, err := a.client().Partitions(ctx)
	if err != nil {
		return l, err
	}
	l.parts, l.known = owned(list)[id], n.Load != nil || strings.HasPrefix(n.State, "down")
	if n.Load != nil {
		l.instances, l.flows = n.Load.Instances, n.Load.Flows
	}
	return l, nil
}

// awaitEmpty shows what is left on a node until nothing is, and nothing has come for settleTime.
func (a *app) awaitEmpty(ctx context.Context, id starling.NodeID, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	var last leftover
	shown, since := "", time.Now() // since when nothing was left
	for {
		l, err := a.leftOn(ctx, id)
		switch {
		case ctx.Err() != nil:
			return starling.Errorf(starling.Timeout, "drain node", "%s still has %s after %s; it goes on being drained", id, last, wait)
		case err != nil:
			return err
		case !l.empty():
			since = time.Now()
		case time.Since(since) >= min(settleTime, wait/2):
			return a.say(protocol.Draining{Draining: true}, "%s is empty.", id)
		}
		last = l
		if now := fmt.Sprintf("%s: %s left", id, l); now != shown && a.flags.output != "json" && a.flags.output != "yaml" {
			shown = now
			if err := a.say(nil, "%s", now); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func nodeUndrain(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "undrain NODE", Short: "Let a drained node work again (admin)", Args: cobra.ExactArgs(1), Example: "  starling node undrain n2",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := a.findNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.client().DrainNode(cmd.Context(), n.ID, false); err != nil {
				return err
			}
			return a.say(protocol.Draining{}, "%s works again; it gets partitions as the load asks for it.", n.ID)
		}}
}

func nodeRemove(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "remove NODE", Aliases: []string{"rm"}, Short: "End a node's membership for good (admin)", Args: cobra.ExactArgs(1),
		Long:    "Remove makes the node's certificate worthless. It refuses while the node is alive and not drained, unless it is forced.",
		Example: "  starling node remove n2\n  starling node remove n2 --force",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := a.findNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.client().RemoveNode(cmd.Context(), n.ID, force); err != nil {
				return err
			}
			return a.say(map[string]string{"removed": n.ID.String()}, "Removed %s.", n.ID)
		}}
	c.Flags().BoolVar(&force, "force", false, "also a node that is alive and not drained")
	return c
}

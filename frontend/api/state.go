package api

import (
	"context"
	"fmt"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

func (a *api) state() {
	register(a, huma.Operation{OperationID: "whoami", Method: http.MethodGet, Path: "/v1/whoami", Summary: "Whom the key stands for", Tags: []string{"keys"}}, anyKey, a.whoami)
	register(a, huma.Operation{OperationID: "list-nodes", Method: http.MethodGet, Path: "/v1/nodes", Summary: "List the nodes of the cluster", Tags: []string{"cluster"}}, adminKey, a.nodes)
	register(a, huma.Operation{OperationID: "list-partitions", Method: http.MethodGet, Path: "/v1/partitions", Summary: "List the partitions of the key space", Tags: []string{"cluster"}}, adminKey, a.partitions)
}

func (a *api) whoami(_ context.Context, p auth.Principal, _ *onlyKey) (*output[protocol.Identity], error) {
	id := protocol.Identity{Account: p.Account, Role: p.Role, KeyID: p.KeyID}
	if t := a.Topology(); t != nil {
		id.Cluster = t.Cluster
	}
	return &output[protocol.Identity]{id}, nil
}

func (a *api) nodes(ctx context.Context, _ auth.Principal, _ *onlyKey) (*output[protocol.Page[protocol.Node]], error) {
	var out []protocol.Node
	if t := a.Topology(); t != nil {
		for _, n := range t.Nodes {
			state := "down"
			if a.Alive(n.ID) {
				state = "alive"
			}
			if n.Draining {
				state += ", draining"
			}
			out = append(out, protocol.Node{Node: n, Roles: n.Roles.String(), State: state})
		}
	}
	a.observed(ctx, out)
	return paged(out, ""), nil
}

func (a *api) partitions(_ context.Context, _ auth.Principal, _ *onlyKey) (*output[protocol.Page[protocol.Partition]], error) {
	var out []protocol.Partition
	if t := a.Topology(); t != nil && t.Map != nil {
		for _, p := range t.Map.Partitions {
			out = append(out, protocol.Partition{ID: p.ID, Lo: hex(p.Range.Lo), Hi: hex(p.Range.Hi), Epoch: p.Epoch, Owner: p.Owner, State: a.ownership(p.Owner)})
		}
	}
	return paged(out, ""), nil
}

func (a *api) ownership(owner starling.NodeID) string {
	switch {
	case owner == 0:
		return "unowned"
	case !a.Alive(owner):
		return "owner-down"
	}
	return "owned"
}

func hex(k starling.Key64) string { return fmt.Sprintf("%016x", uint64(k)) }

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

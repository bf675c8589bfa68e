package api

import (
	"context"
	"net"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/cluster"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

type (
	// NetworkInput names a network in the path.
	NetworkInput struct {
		Credentials
		Name starling.NetworkName `path:"name" doc:"network"`
	}
	createNetworkInput struct {
		Credentials
		Body protocol.NetworkSpec
	}
	testNetworkInput struct {
		NetworkInput
		Body protocol.NetworkTarget
	}
)

const hostMax = 253 // bytes of a name

func (a *api) networks() {
	tags := []string{"networks"}
	register(a, huma.Operation{OperationID: "list-networks", Method: http.MethodGet, Path: "/v1/networks", Summary: "List networks", Tags: tags}, anyKey, a.listNetworks)
	register(a, huma.Operation{OperationID: "create-network", Method: http.MethodPost, Path: "/v1/networks", Summary: "Create a network", Tags: tags, DefaultStatus: http.StatusCreated}, anyKey, a.createNetwork)
	register(a, huma.Operation{OperationID: "get-network", Method: http.MethodGet, Path: "/v1/networks/{name}", Summary: "Show a network", Tags: tags}, anyKey, a.network)
	register(a, huma.Operation{OperationID: "delete-network", Method: http.MethodDelete, Path: "/v1/networks/{name}", Summary: "Delete a network that no version names", Tags: tags, DefaultStatus: http.StatusNoContent}, anyKey, a.deleteNetwork)
	register(a, huma.Operation{OperationID: "test-network", Method: http.MethodPost, Path: "/v1/networks/{name}/test", Summary: "Tell what a connection from a network would meet", Tags: tags}, anyKey, a.testNetwork)
}

func (a *api) listNetworks(ctx context.Context, p auth.Principal, _ *onlyKey) (*output[protocol.Page[starling.Network]], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryNetworks, Account: p.Account})
	if err != nil {
		return nil, err
	}
	return paged(r.Networks, ""), nil
}

func (a *api) createNetwork(ctx context.Context, p auth.Principal, in *createNetworkInput) (*output[starling.Network], error) {
	s := in.Body
	n := starling.Network{Ref: starling.NetworkRef{Account: p.Account, Name: s.Name}, CIDRs: s.CIDRs, DNS: s.DNS, Egress: s.Egress, Allow: s.Allow, Deny: s.Deny,
		ConnMax: s.ConnMax, RateMax: s.RateMax, Created: a.Now().Unix()}.WithDefaults()
	if err := n.Validate(); err != nil {
		return nil, err
	}
	r, err := a.propose(ctx, cluster.PutNetwork{Network: n, Create: true})
	if err != nil {
		return nil, err
	}
	return one(r.Network, "network")
}

func (a *api) network(ctx context.Context, p auth.Principal, in *NetworkInput) (*output[starling.Network], error) {
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryNetwork, Account: p.Account, Network: in.Name})
	if err != nil {
		return nil, err
	}
	return one(r.Network, "network")
}

func (a *api) deleteNetwork(ctx context.Context, p auth.Principal, in *NetworkInput) (*nothing, error) {
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	_, err := a.propose(ctx, cluster.DeleteNetwork{Ref: starling.NetworkRef{Account: p.Account, Name: in.Name}})
	return nil, err
}

func (a *api) testNetwork(ctx context.Context, p auth.Principal, in *testNetworkInput) (*output[protocol.NetworkTest], error) {
	const op = "test network"
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	host, text, err := net.SplitHostPort(in.Body.Target)
	port, perr := strconv.ParseUint(text, 10, 16)
	if err != nil || perr != nil || port == 0 || host == "" || len(host) > hostMax {
		return nil, starling.Errorf(starling.Invalid, op, "%q: use an address or a name with a port, as in db.internal:5432", in.Body.Target)
	}
	if a.Probe == nil {
		return nil, starling.Errorf(starling.Unavailable, op, "this frontend knows no gateways")
	}
	ref := starling.NetworkRef{Account: p.Account, Name: in.Name}
	if in.Name != starling.Internet {
		if _, err := a.read(ctx, cluster.Query{What: cluster.QueryNetwork, Account: p.Account, Network: in.Name}); err != nil {
			return nil, err
		}
	}
	t, err := a.Probe(ctx, ref, host, uint16(port))
	if err != nil {
		return nil, err
	}
	t.Network, t.Target = in.Name, in.Body.Target
	return &output[protocol.NetworkTest]{Body: t}, nil
}

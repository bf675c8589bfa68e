package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/cluster"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

type (
	isolationInput struct {
		Credentials
		Body protocol.Isolation
	}
	accountIsolationInput struct {
		AccountInput
		Body starling.IsolationPolicy
	}
)

func (a *api) isolations() {
	tags := []string{"isolation"}
	register(a, huma.Operation{OperationID: "get-isolation", Method: http.MethodGet, Path: "/v1/isolation", Summary: "Show what isolates functions that do not say, and what they may not have less of", Tags: tags}, adminKey, a.isolation)
	register(a, huma.Operation{OperationID: "set-isolation", Method: http.MethodPut, Path: "/v1/isolation", Summary: "Replace what is said of all functions; those deployed keep what they have", Tags: tags}, adminKey, a.setIsolation)
	register(a, huma.Operation{OperationID: "get-account-isolation", Method: http.MethodGet, Path: "/v1/accounts/{id}/isolation", Summary: "Show what counts for one account's functions", Tags: tags}, adminKey, a.accountIsolation)
	register(a, huma.Operation{OperationID: "set-account-isolation", Method: http.MethodPut, Path: "/v1/accounts/{id}/isolation", Summary: "Replace what is said of one account's functions; those deployed keep what they have", Tags: tags}, adminKey, a.setAccountIsolation)
}

func isolationOf(r cluster.Reply) (*output[protocol.Isolation], error) {
	i, err := one(r.Isolation, "isolation")
	if err != nil {
		return nil, err
	}
	return &output[protocol.Isolation]{protocol.Isolation{IsolationPolicy: i.Body.Policy, SharedKernel: i.Body.SharedKernel}}, nil
}

func (a *api) isolation(ctx context.Context, _ auth.Principal, _ *onlyKey) (*output[protocol.Isolation], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryIsolation})
	if err != nil {
		return nil, err
	}
	return isolationOf(r)
}

func (a *api) setIsolation(ctx context.Context, _ auth.Principal, in *isolationInput) (*output[protocol.Isolation], error) {
	r, err := a.propose(ctx, cluster.SetIsolation{Policy: in.Body.IsolationPolicy, SharedKernel: in.Body.SharedKernel})
	if err != nil {
		return nil, err
	}
	return isolationOf(r)
}

func (a *api) accountIsolation(ctx context.Context, _ auth.Principal, in *AccountInput) (*output[protocol.Isolation], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryIsolation, Account: in.ID})
	if err != nil {
		return nil, err
	}
	return isolationOf(r)
}

func (a *api) setAccountIsolation(ctx context.Context, _ auth.Principal, in *accountIsolationInput) (*output[protocol.Isolation], error) {
	r, err := a.propose(ctx, cluster.SetIsolation{Account: in.ID, Policy: in.Body})
	if err != nil {
		return nil, err
	}
	return isolationOf(r)
}

// spoken returns v as people and programs see it: with its isolation said, also where it is the one that is not stored.
func spoken(v starling.Version) starling.Version {
	v.Config.Isolation = v.Isolation()
	return v
}

func spokenAll(list []starling.Version) []starling.Version {
	out := make([]starling.Version, len(list))
	for k, v := range list {
		out[k] = spoken(v)
	}
	return out
}

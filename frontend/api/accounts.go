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
	onlyKey   struct{ Credentials }
	listInput struct {
		Credentials
		Page
	}
	// AccountInput names an account in the path.
	AccountInput struct {
		Credentials
		ID starling.AccountID `path:"id" doc:"account"`
	}
	createAccountInput struct {
		Credentials
		Body protocol.AccountSpec
	}
	createKeyInput struct {
		AccountInput
		Body protocol.KeySpec
	}
	keyInput struct {
		AccountInput
		Key string `path:"key" maxLength:"64" doc:"id of the key"`
	}
	output[T any] struct{ Body T }
	nothing       struct{}
)

func (a *api) accounts() {
	register(a, huma.Operation{OperationID: "list-accounts", Method: http.MethodGet, Path: "/v1/accounts", Summary: "List accounts", Tags: []string{"accounts"}}, adminKey, a.listAccounts)
	register(a, huma.Operation{OperationID: "create-account", Method: http.MethodPost, Path: "/v1/accounts", Summary: "Create an account", Tags: []string{"accounts"}, DefaultStatus: http.StatusCreated}, adminKey, a.createAccount)
	register(a, huma.Operation{OperationID: "get-account", Method: http.MethodGet, Path: "/v1/accounts/{id}", Summary: "Show an account", Tags: []string{"accounts"}}, adminKey, a.account)
	register(a, huma.Operation{OperationID: "delete-account", Method: http.MethodDelete, Path: "/v1/accounts/{id}", Summary: "Delete an account without functions", Tags: []string{"accounts"}, DefaultStatus: http.StatusNoContent}, adminKey, a.deleteAccount)
	register(a, huma.Operation{OperationID: "list-keys", Method: http.MethodGet, Path: "/v1/accounts/{id}/keys", Summary: "List keys", Tags: []string{"keys"}}, adminKey, a.listKeys)
	register(a, huma.Operation{OperationID: "create-key", Method: http.MethodPost, Path: "/v1/accounts/{id}/keys", Summary: "Create a key; its secret is shown once", Tags: []string{"keys"}, DefaultStatus: http.StatusCreated}, adminKey, a.createKey)
	register(a, huma.Operation{OperationID: "delete-key", Method: http.MethodDelete, Path: "/v1/accounts/{id}/keys/{key}", Summary: "Revoke a key", Tags: []string{"keys"}, DefaultStatus: http.StatusNoContent}, adminKey, a.deleteKey)
}

func (a *api) listAccounts(ctx context.Context, _ auth.Principal, in *listInput) (*output[protocol.Page[starling.Account]], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryAccounts, After: in.After, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	return paged(r.Accounts, r.Next), nil
}

func (a *api) account(ctx context.Context, _ auth.Principal, in *AccountInput) (*output[starling.Account], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryAccount, Account: in.ID})
	if err != nil {
		return nil, err
	}
	return one(r.Account, "account")
}

func (a *api) createAccount(ctx context.Context, _ auth.Principal, in *createAccountInput) (*output[starling.Account], error) {
	acc := starling.Account{ID: in.Body.ID, ConcurrencyMax: in.Body.ConcurrencyMax, Created: a.Now().Unix(), Isolation: in.Body.Isolation, IsolationLeast: in.Body.IsolationLeast}
	if err := acc.ID.Validate(); err != nil {
		return nil, err
	}
	if acc.ConcurrencyMax == 0 {
		acc.ConcurrencyMax = starling.ConcurrencyMax
	}
	r, err := a.propose(ctx, cluster.CreateAccount{Account: acc})
	if err != nil {
		return nil, err
	}
	if r.Account != nil {
		acc = *r.Account
	}
	return &output[starling.Account]{acc}, nil
}

func (a *api) deleteAccount(ctx context.Context, _ auth.Principal, in *AccountInput) (*nothing, error) {
	_, err := a.propose(ctx, cluster.DeleteAccount{ID: in.ID})
	return nil, err
}

func (a *api) listKeys(ctx context.Context, _ auth.Principal, in *AccountInput) (*output[protocol.Page[starling.Key]], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryKeys, Account: in.ID, Limit: 1000})
	if err != nil {
		return nil, err
	}
	return paged(r.Keys, r.Next), nil
}

func (a *api) createKey(ctx context.Context, _ auth.Principal, in *createKeyInput) (*output[protocol.NewKey], error) {
	role := in.Body.Role
	switch role {
	case "":
		role = starling.KeyUser
	case starling.KeyUser, starling.KeyAdmin:
	default:
		return nil, starling.Errorf(starling.Invalid, "create key", "%q is no role of a key: use user or admin", string(role))
	}
	secret, key := auth.NewKey()
	key.Account, key.Role, key.Created = in.ID, role, a.Now().Unix()
	if _, err := a.propose(ctx, cluster.CreateKey{Key: key}); err != nil {
		return nil, err
	}
	return &output[protocol.NewKey]{protocol.NewKey{Key: key, Secret: secret}}, nil
}

func (a *api) deleteKey(ctx context.Context, _ auth.Principal, in *keyInput) (*nothing, error) {
	_, err := a.propose(ctx, cluster.DeleteKey{Account: in.ID, ID: in.Key})
	return nil, err
}

// paged makes an answer of a list; an empty list is [], never null.
func paged[T any](items []T, next string) *output[protocol.Page[T]] {
	if items == nil {
		items = []T{}
	}
	return &output[protocol.Page[T]]{protocol.Page[T]{Items: items, Next: next}}
}

// one makes an answer of a reply that must be there.
func one[T any](v *T, what string) (*output[T], error) {
	if v == nil {
		return nil, starling.Errorf(starling.Internal, "ask managers", "the answer holds no %s", what)
	}
	return &output[T]{*v}, nil
}

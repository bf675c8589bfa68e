package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/cluster"
	"starling/cluster/identity"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

const (
	tokenLife    = time.Hour
	tokenLifeMax = 7 * 24 * time.Hour
)

type createTokenInput struct {
	Credentials
	Body protocol.TokenSpec
}

func (a *api) tokens() {
	register(a, huma.Operation{OperationID: "create-token", Method: http.MethodPost, Path: "/v1/tokens", Summary: "Create a join token; it is shown once", Tags: []string{"nodes"}, DefaultStatus: http.StatusCreated}, adminKey, a.createToken)
}

// createToken draws a token and tells the cluster its hash.
func (a *api) createToken(ctx context.Context, _ auth.Principal, in *createTokenInput) (*output[protocol.Token], error) {
	if in.Body.Roles == "" {
		in.Body.Roles = "all"
	}
	roles, err := starling.ParseRoles(in.Body.Roles)
	if err != nil {
		return nil, err
	}
	life := time.Duration(in.Body.LifeSeconds) * time.Second
	if life == 0 {
		life = tokenLife
	}
	if life < 0 || life > tokenLifeMax {
		return nil, starling.Errorf(starling.Invalid, "create token", "lifeSeconds %d: use 1-%d", in.Body.LifeSeconds, int64(tokenLifeMax/time.Second))
	}
	t := identity.NewToken(a.CA)
	expires := a.Now().Add(life).Unix()
	if _, err := a.Cluster.Propose(ctx, cluster.AddToken{Hash: t.SecretHash(), Roles: roles, Expires: expires}); err != nil {
		return nil, err
	}
	return &output[protocol.Token]{Body: protocol.Token{Token: t.String(), Roles: roles.String(), Expires: expires}}, nil
}

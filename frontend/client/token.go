package client

import (
	"context"
	"net/http"

	"starling/frontend/protocol"
)

// CreateToken makes a token that lets one node join; it is in the answer and nowhere else. Admin only.
func (c *HTTP) CreateToken(ctx context.Context, spec protocol.TokenSpec) (t protocol.Token, err error) {
	return t, c.json(ctx, http.MethodPost, "/v1/tokens", spec, &t)
}

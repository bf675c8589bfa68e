package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"starling"
	"starling/frontend/protocol"
)

// ChangePartition moves, splits or merges a partition and waits until it is done. Admin only.
func (c *HTTP) ChangePartition(ctx context.Context, id starling.PartitionID, change protocol.PartitionChange) error {
	return c.json(ctx, http.MethodPost, fmt.Sprintf("/v1/partitions/%d/changes", uint64(id)), change, nil)
}

// Plan shows what the balance plan would change. Admin only.
func (c *HTTP) Plan(ctx context.Context) (p protocol.Plan, err error) {
	return p, c.json(ctx, http.MethodGet, "/v1/partitions/plan", nil, &p)
}

// PartitionHistory returns what happened after an event of a reign. Admin only.
func (c *HTTP) PartitionHistory(ctx context.Context, reign, after uint64) (h protocol.PartitionHistory, err error) {
	return h, c.json(ctx, http.MethodGet, fmt.Sprintf("/v1/partitions/history?reign=%d&after=%d", reign, after), nil, &h)
}

// DrainNode empties a node, or lets it work again. Admin only.
func (c *HTTP) DrainNode(ctx context.Context, id starling.NodeID, draining bool) error {
	return c.json(ctx, http.MethodPut, fmt.Sprintf("/v1/nodes/%d/draining", uint64(id)), protocol.Draining{Draining: draining}, nil)
}

// Isolation returns what the operator says of all functions. Admin only.
func (c *HTTP) Isolation(ctx context.Context) (i protocol.Isolation, err error) {
	return i, c.json(ctx, http.MethodGet, "/v1/isolation", nil, &i)
}

// SetIsolation replaces it. Admin only.
func (c *HTTP) SetIsolation(ctx context.Context, to protocol.Isolation) (i protocol.Isolation, err error) {
	return i, c.json(ctx, http.MethodPut, "/v1/isolation", to, &i)
}

// AccountIsolation returns what counts for one account's functions. Admin only.
func (c *HTTP) AccountIsolation(ctx context.Context, id starling.AccountID) (i protocol.Isolation, err error) {
	return i, c.json(ctx, http.MethodGet, "/v1/accounts/"+url.PathEscape(string(id))+"/isolation", nil, &i)
}

// SetAccountIsolation replaces what is said of them. Admin only.
func (c *HTTP) SetAccountIsolation(ctx context.Context, id starling.AccountID, to starling.IsolationPolicy) (i protocol.Isolation, err error) {
	return i, c.json(ctx, http.MethodPut, "/v1/accounts/"+url.PathEscape(string(id))+"/isolation", to, &i)
}

// RemoveNode ends a membership; without force only that of a node that is down or empty. Admin only.
func (c *HTTP) RemoveNode(ctx context.Context, id starling.NodeID, force bool) error {
	return c.json(ctx, http.MethodDelete, fmt.Sprintf("/v1/nodes/%d?force=%t", uint64(id), force), nil, nil)
}

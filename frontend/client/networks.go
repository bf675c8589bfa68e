package client

import (
	"context"
	"net/http"
	"net/url"

	"starling"
	"starling/frontend/protocol"
)

func network(name starling.NetworkName) string { return "/v1/networks/" + url.PathEscape(string(name)) }

// CreateNetwork creates a network of the key's account.
func (c *HTTP) CreateNetwork(ctx context.Context, spec protocol.NetworkSpec) (n starling.Network, err error) {
	return n, c.json(ctx, http.MethodPost, "/v1/networks", spec, &n)
}

// Networks lists the account's networks, by name.
func (c *HTTP) Networks(ctx context.Context) ([]starling.Network, error) {
	var p protocol.Page[starling.Network]
	err := c.json(ctx, http.MethodGet, "/v1/networks", nil, &p)
	return p.Items, err
}

// Network returns one network.
func (c *HTTP) Network(ctx context.Context, name starling.NetworkName) (n starling.Network, err error) {
	return n, c.json(ctx, http.MethodGet, network(name), nil, &n)
}

// DeleteNetwork removes a network that no version names.
func (c *HTTP) DeleteNetwork(ctx context.Context, name starling.NetworkName) error {
	return c.json(ctx, http.MethodDelete, network(name), nil, nil)
}

// TestNetwork tells what a connection from a network to "host:port" would meet.
func (c *HTTP) TestNetwork(ctx context.Context, name starling.NetworkName, target string) (t protocol.NetworkTest, err error) {
	return t, c.json(ctx, http.MethodPost, network(name)+"/test", protocol.NetworkTarget{Target: target}, &t)
}

package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"starling"
	"starling/frontend/protocol"
)

// Layers lists the newest version of each layer by name after the given one; limit 0 means 100.
func (c *HTTP) Layers(ctx context.Context, after string, limit int) (p protocol.Page[starling.Layer], err error) {
	return p, c.json(ctx, http.MethodGet, "/v1/layers"+page(after, limit), nil, &p)
}

// LayerVersions lists the versions of a layer, the newest first.
func (c *HTTP) LayerVersions(ctx context.Context, name starling.LayerName) ([]starling.Layer, error) {
	var p protocol.Page[starling.Layer]
	err := c.json(ctx, http.MethodGet, layer(name), nil, &p)
	return p.Items, err
}

// Layer returns one version of a layer.
func (c *HTTP) Layer(ctx context.Context, ref starling.LayerRef) (l starling.Layer, err error) {
	return l, c.json(ctx, http.MethodGet, layerVersion(ref), nil, &l)
}

// PublishLayer numbers a version of a layer made of uploaded code. Publishing the newest one's content again answers the newest.
func (c *HTTP) PublishLayer(ctx context.Context, name starling.LayerName, spec protocol.LayerSpec) (l starling.Layer, err error) {
	return l, c.json(ctx, http.MethodPost, layer(name), spec, &l)
}

// DeleteLayer removes one version of a layer; Conflict while a function uses it.
func (c *HTTP) DeleteLayer(ctx context.Context, ref starling.LayerRef) error {
	return c.json(ctx, http.MethodDelete, layerVersion(ref), nil, nil)
}

func layer(name starling.LayerName) string {
	return "/v1/layers/" + url.PathEscape(string(name)) + "/versions"
}

func layerVersion(ref starling.LayerRef) string {
	return layer(ref.Name) + "/" + strconv.FormatUint(uint64(ref.Version), 10)
}

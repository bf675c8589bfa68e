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
	// LayerInput names a layer in the path.
	LayerInput struct {
		Credentials
		Name starling.LayerName `path:"name" doc:"layer"`
	}
	// LayerVersionInput names one version of it.
	LayerVersionInput struct {
		LayerInput
		Version uint32 `path:"version" minimum:"1" doc:"number of the version"`
	}
	publishLayerInput struct {
		LayerInput
		Body protocol.LayerSpec
	}
)

func (a *api) layers() {
	tags := []string{"layers"}
	register(a, huma.Operation{OperationID: "list-layers", Method: http.MethodGet, Path: "/v1/layers", Summary: "List layers, the newest version of each", Tags: tags}, anyKey, a.listLayers)
	register(a, huma.Operation{OperationID: "list-layer-versions", Method: http.MethodGet, Path: "/v1/layers/{name}/versions", Summary: "List the versions of a layer, the newest first", Tags: tags}, anyKey, a.layer)
	register(a, huma.Operation{OperationID: "publish-layer", Method: http.MethodPost, Path: "/v1/layers/{name}/versions", Summary: "Number a version of a layer made of uploaded code", Tags: tags, DefaultStatus: http.StatusCreated}, anyKey, a.publishLayer)
	register(a, huma.Operation{OperationID: "get-layer-version", Method: http.MethodGet, Path: "/v1/layers/{name}/versions/{version}", Summary: "Show one version of a layer", Tags: tags}, anyKey, a.layerVersion)
	register(a, huma.Operation{OperationID: "delete-layer-version", Method: http.MethodDelete, Path: "/v1/layers/{name}/versions/{version}", Summary: "Delete a version of a layer that no function uses", Tags: tags, DefaultStatus: http.StatusNoContent}, anyKey, a.deleteLayer)
}

func (a *api) listLayers(ctx context.Context, p auth.Principal, in *listInput) (*output[protocol.Page[starling.Layer]], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryLayers, Account: p.Account, After: in.After, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	return paged(r.Layers, r.Next), nil
}

func (a *api) layer(ctx context.Context, p auth.Principal, in *LayerInput) (*output[protocol.Page[starling.Layer]], error) {
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryLayer, Account: p.Account, Layer: in.Name})
	if err != nil {
		return nil, err
	}
	return paged(r.Layers, ""), nil
}

func (a *api) layerVersion(ctx context.Context, p auth.Principal, in *LayerVersionInput) (*output[starling.Layer], error) {
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryLayer, Account: p.Account, Layer: in.Name, Number: starling.VersionNumber(in.Version)})
	return theLayer(r, err)
}

func theLayer(r cluster.Reply, err error) (*output[starling.Layer], error) {
	if err != nil {
		return nil, err
	}
	if len(r.Layers) != 1 {
		return nil, starling.Errorf(starling.Internal, "ask managers", "the answer holds %d layers", len(r.Layers))
	}
	return &output[starling.Layer]{r.Layers[0]}, nil
}

func (a *api) publishLayer(ctx context.Context, p auth.Principal, in *publishLayerInput) (*output[starling.Layer], error) {
	l := starling.Layer{Account: p.Account, Name: in.Name, Code: in.Body.Code, Runtimes: in.Body.Runtimes, Description: in.Body.Description, Created: a.Now().Unix()}
	var err error
	if l.CodeSize, err = a.codeSize(ctx, "publish layer", p.Account, l.Code); err != nil {
		return nil, err
	}
	if l.Unpacked, err = a.Code.Unpacked(ctx, p.Account, l.Code); err != nil {
		return nil, err
	}
	r, err := a.propose(ctx, cluster.PublishLayer{Layer: l})
	return theLayer(r, err)
}

func (a *api) deleteLayer(ctx context.Context, p auth.Principal, in *LayerVersionInput) (*nothing, error) {
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	_, err := a.propose(ctx, cluster.DeleteLayer{Account: p.Account, Layer: starling.LayerRef{Name: in.Name, Version: starling.VersionNumber(in.Version)}})
	return nil, err
}

package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/cluster"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

type (
	// FunctionInput names a function in the path.
	FunctionInput struct {
		Credentials
		Name starling.FunctionName `path:"name" doc:"function"`
	}
	createFunctionInput struct {
		Credentials
		Body protocol.FunctionSpec
	}
	updateFunctionInput struct {
		FunctionInput
		IfMatch string `header:"If-Match" doc:"ETag of the snapshot this update is based on"`
		Body    protocol.FunctionSpec
	}
	versionOutput struct {
		ETag string `header:"ETag"`
		Body starling.Version
	}
	functionOutput struct {
		ETag string `header:"ETag"`
		Body protocol.Function
	}
)

func (a *api) functions() {
	tags := []string{"functions"}
	register(a, huma.Operation{OperationID: "list-functions", Method: http.MethodGet, Path: "/v1/functions", Summary: "List functions", Tags: tags}, anyKey, a.listFunctions)
	register(a, huma.Operation{OperationID: "create-function", Method: http.MethodPost, Path: "/v1/functions", Summary: "Create a function from uploaded code", Tags: tags, DefaultStatus: http.StatusCreated}, anyKey, a.createFunction)
	register(a, huma.Operation{OperationID: "get-function", Method: http.MethodGet, Path: "/v1/functions/{name}", Summary: "Show a function", Tags: tags}, anyKey, a.function)
	register(a, huma.Operation{OperationID: "update-function", Method: http.MethodPut, Path: "/v1/functions/{name}", Summary: "Replace the latest snapshot; what is left out stays", Tags: tags}, anyKey, a.updateFunction)
	register(a, huma.Operation{OperationID: "delete-function", Method: http.MethodDelete, Path: "/v1/functions/{name}", Summary: "Delete a function and its versions", Tags: tags, DefaultStatus: http.StatusNoContent}, anyKey, a.deleteFunction)
	register(a, huma.Operation{OperationID: "list-versions", Method: http.MethodGet, Path: "/v1/functions/{name}/versions", Summary: "List published versions", Tags: tags}, anyKey, a.listVersions)
	register(a, huma.Operation{OperationID: "publish-version", Method: http.MethodPost, Path: "/v1/functions/{name}/versions", Summary: "Number a copy of the latest snapshot", Tags: tags, DefaultStatus: http.StatusCreated}, anyKey, a.publish)
}

func (a *api) listFunctions(ctx context.Context, p auth.Principal, in *listInput) (*output[protocol.Page[starling.Version]], error) {
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryFunctions, Account: p.Account, After: in.After, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	return paged(spokenAll(r.Functions), r.Next), nil
}

// find reads a function of p with its versions, linearizably.
func (a *api) find(ctx context.Context, p auth.Principal, name starling.FunctionName) (protocol.Function, error) {
	if err := name.Validate(); err != nil {
		return protocol.Function{}, err
	}
	r, err := a.read(ctx, cluster.Query{What: cluster.QueryFunction, Account: p.Account, Function: name})
	if err != nil {
		return protocol.Function{}, err
	}
	if r.Function == nil {
		return protocol.Function{}, starling.Errorf(starling.Internal, "ask managers", "the answer holds no function")
	}
	f := protocol.Function{Function: *r.Function, Numbered: []starling.Version{}}
	found := false
	for _, v := range r.Versions {
		switch {
		case v.Number != starling.Latest:
			f.Numbered = append(f.Numbered, v)
		case v.ID == f.Latest:
			f.Snapshot, found = v, true
		}
	}
	if r.Version != nil {
		f.Snapshot, found = *r.Version, true
	}
	if !found { // the latest snapshot is also what was published last
		for _, v := range f.Numbered {
			if v.ID == f.Latest {
				f.Snapshot, found = v, true
			}
		}
	}
	if !found {
		return f, starling.Errorf(starling.Internal, "ask managers", "the answer lacks the latest snapshot of %s", f.Ref)
	}
	slices.SortFunc(f.Numbered, func(x, y starling.Version) int { return cmp.Compare(x.Number, y.Number) })
	return f, nil
}

func (a *api) function(ctx context.Context, p auth.Principal, in *FunctionInput) (*functionOutput, error) {
	f, err := a.find(ctx, p, in.Name)
	if err != nil {
		return nil, err
	}
	f.Snapshot, f.Numbered = spoken(f.Snapshot), spokenAll(f.Numbered)
	return &functionOutput{etag(f.Latest), f}, nil
}

func (a *api) createFunction(ctx context.Context, p auth.Principal, in *createFunctionInput) (*versionOutput, error) {
	const op = "create function"
	if err := in.Body.Name.Validate(); err != nil {
		return nil, err
	}
	if in.Body.Config == nil {
		return nil, starling.Errorf(starling.Invalid, op, "config is missing: name at least a runtime")
	}
	if in.Body.Code == "" {
		return nil, starling.Errorf(starling.Invalid, op, "code is missing: upload a zip to /v1/code and send the hash that it answers")
	}
	return a.put(ctx, p, in.Body.Name, cluster.PutFunction{Config: *in.Body.Config, Code: in.Body.Code, Create: true})
}

func (a *api) updateFunction(ctx context.Context, p auth.Principal, in *updateFunctionInput) (*versionOutput, error) {
	const op = "update function"
	if in.Body.Name != "" && in.Body.Name != in.Name {
		return nil, starling.Errorf(starling.Invalid, op, "a function keeps its name: leave %q out", string(in.Body.Name))
	}
	expect, err := expected(in.IfMatch, in.Body.Expect)
	if err != nil {
		return nil, err
	}
	if in.Body.Config == nil && in.Body.Code == "" {
		return nil, starling.Errorf(starling.Invalid, op, "nothing to change: send config, code or both")
	}
	f, err := a.find(ctx, p, in.Name)
	if err != nil {
		return nil, err
	}
	if expect != 0 && expect != f.Latest {
		return nil, starling.Errorf(starling.Conflict, op, "the latest snapshot is %d, this update is based on %d: read it and try again", f.Latest, expect)
	}
	cmd := cluster.PutFunction{Config: f.Snapshot.Config, Code: f.Snapshot.Code, CodeSize: f.Snapshot.CodeSize, Update: true, Expect: expect}
	if in.Body.Config == nil || in.Body.Code == "" {
		cmd.Expect = f.Latest // what is left out stays as it was read, or the update is refused
	}
	if in.Body.Config != nil {
		cmd.Config = *in.Body.Config
	}
	if in.Body.Code != "" {
		cmd.Code = in.Body.Code
	}
	return a.put(ctx, p, in.Name, cmd)
}

// put proposes a snapshot after checking what only this account may say: its code and its configuration.
func (a *api) put(ctx context.Context, p auth.Principal, name starling.FunctionName, cmd cluster.PutFunction) (*versionOutput, error) {
	cmd.Function = starling.FunctionRef{Account: p.Account, Name: name}
	cmd.Config = cmd.Config.WithDefaults()
	cmd.Now = a.Now().Unix()
	if err := cmd.Config.Validate(); err != nil {
		return nil, err
	}
	var err error
	if cmd.CodeSize, err = a.codeSize(ctx, "put function", p.Account, cmd.Code); err != nil {
		return nil, err
	}
	if len(cmd.Config.Layers) > 0 {
		if cmd.Unpacked, err = a.Code.Unpacked(ctx, p.Account, cmd.Code); err != nil {
			return nil, err
		}
	}
	r, err := a.propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	if r.Version == nil {
		return nil, starling.Errorf(starling.Internal, "ask managers", "the answer holds no version")
	}
	return &versionOutput{etag(r.Version.ID), spoken(*r.Version)}, nil
}

// codeSize returns the bytes of an uploaded zip; Invalid when this account has none of that hash.
func (a *api) codeSize(ctx context.Context, op string, account starling.AccountID, hash starling.CodeHash) (int64, error) {
	size, err := a.Code.Size(ctx, account, hash)
	if starling.KindOf(err) == starling.NotFound {
		return 0, starling.Errorf(starling.Invalid, op, "this account has no code %q: upload the zip to /v1/code first", string(hash)).With("NoCode")
	}
	return size, err
}

func (a *api) deleteFunction(ctx context.Context, p auth.Principal, in *FunctionInput) (*nothing, error) {
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	_, err := a.propose(ctx, cluster.DeleteFunction{Function: starling.FunctionRef{Account: p.Account, Name: in.Name}})
	return nil, err
}

func (a *api) listVersions(ctx context.Context, p auth.Principal, in *FunctionInput) (*output[protocol.Page[starling.Version]], error) {
	f, err := a.find(ctx, p, in.Name)
	if err != nil {
		return nil, err
	}
	return paged(spokenAll(f.Numbered), ""), nil
}

func (a *api) publish(ctx context.Context, p auth.Principal, in *FunctionInput) (*versionOutput, error) {
	if err := in.Name.Validate(); err != nil {
		return nil, err
	}
	r, err := a.propose(ctx, cluster.PublishVersion{Function: starling.FunctionRef{Account: p.Account, Name: in.Name}, Now: a.Now().Unix()})
	if err != nil {
		return nil, err
	}
	if r.Version == nil {
		return nil, starling.Errorf(starling.Internal, "ask managers", "the answer holds no version")
	}
	return &versionOutput{etag(r.Version.ID), spoken(*r.Version)}, nil
}

func etag(id starling.VersionID) string { return `"` + strconv.FormatUint(uint64(id), 10) + `"` }

// expected reads the two ways to say on which snapshot an update is based; they must agree.
func expected(ifMatch string, expect starling.VersionID) (starling.VersionID, error) {
	if ifMatch == "" || ifMatch == "*" {
		return expect, nil
	}
	id, err := strconv.ParseUint(strings.Trim(ifMatch, `"`), 10, 64)
	if err != nil || expect != 0 && expect != starling.VersionID(id) {
		return 0, starling.Errorf(starling.Invalid, "update function", "If-Match %s: send the ETag that the function was read with", ifMatch)
	}
	return starling.VersionID(id), nil
}

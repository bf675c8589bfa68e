package main

import (
	"context"
	"io"

	"starling/frontend/client"
)

// quicCaller calls functions over one QUIC connection. It is safe for concurrent use.
type quicCaller interface {
	io.Closer
	Invoke(ctx context.Context, call client.Call) (*client.Result, error)
}

func (a *app) invokeQUIC(ctx context.Context, call client.Call) (*client.Result, error) {
	q, err := a.dialQUIC(ctx)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	return q.Invoke(ctx, call)
}

func (a *app) dialQUIC(ctx context.Context) (quicCaller, error) { panic("x") }

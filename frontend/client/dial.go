package client

import (
	"context"

	"starling"
	"starling/transport/quic"
)

// Dial connects to the QUIC port of a frontend node and presents key; a wrong key, a wrong cluster or nobody
// there is known when it returns. trust says by what the cluster is known, so that the key goes to nobody else.
// An admin may act for another account; otherwise account is empty. The connection is made again when lost.
func Dial(ctx context.Context, addr, key string, account starling.AccountID, trust quic.Trust) (*QUIC, error) {
	q := NewQUIC(func(ctx context.Context) (Conn, error) {
		c, err := quic.DialClient(ctx, addr, trust)
		if err != nil {
			return nil, err // not c: a nil *quic.Client in a Conn is no nil Conn
		}
		return c, nil
	}, key, account)
	if _, err := q.open(ctx); err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

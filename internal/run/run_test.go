package run

import (
	"context"
	"sync/atomic"
	"testing"
)

func TestStopWaitsForEveryGoroutine(t *testing.T) {
	g := New(context.Background())
	var ended atomic.Int32
	for range 10 {
		g.Go(func(ctx context.Context) {
			<-ctx.Done()
			ended.Add(1)
		})
	}
	g.Stop()
	if ended.Load() != 10 {
		t.Fatalf("%d of 10 goroutines had ended when Stop returned", ended.Load())
	}
	if g.Go(func(context.Context) { ended.Add(1) }) {
		t.Fatal("a stopped group took a goroutine")
	}
	g.Stop()
}

package vmpool

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"starling"
	"starling/vmpool/framed"
)

// warm is a sandbox that waits for code.
type warm struct {
	sandbox Sandbox
	framed  *framed.Conn // nil for provided
	plug    Plug         // nil where it can have no network
	born    time.Time
}

// clone makes one sandbox and waits until its interpreter is warm.
func (p *Pool) clone(ctx context.Context, make func(context.Context) (Sandbox, error), rt starling.Runtime) (*warm, error) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ReadyTime)
	defer cancel()
	sb, err := make(ctx)
	if err != nil {
		return nil, fmt.Errorf("clone sandbox: %w", err)
	}
	w := &warm{sandbox: sb, born: begun}
	if err := w.ready(ctx); err != nil {
		w.close(p.cfg.Log)
		return nil, fmt.Errorf("wait for %s: %w", rt, err)
	}
	if p.cfg.PlugAhead != nil && p.cfg.PlugAhead() {
		w.plug = p.plug(sb)
	}
	p.meters.clone.UpdateDuration(begun)
	return w, nil
}

// ready returns when the interpreter is warm, and no longer stands behind the rest of the machine.
func (w *warm) ready(ctx context.Context) error {
	if nc := w.sandbox.Channel(); nc != nil {
		w.framed = framed.New(nc, framed.Setup{})
		if err := w.framed.Ready(ctx); err != nil {
			return err
		}
	}
	if f, ok := w.sandbox.(Forwarder); ok {
		return f.Forward()
	}
	return nil
}

func (w *warm) close(log *slog.Logger) {
	if w.framed != nil {
		w.framed.Close()
	}
	if w.plug != nil {
		if err := w.plug.Close(); err != nil {
			log.Error("close sandbox's network", "error", err)
		}
	}
	if err := w.sandbox.Close(); err != nil {
		log.Error("close sandbox", "error", err)
	}
}

func (w *warm) dead() bool {
	select {
	case <-w.sandbox.Done():
		return true
	default:
		return false
	}
}

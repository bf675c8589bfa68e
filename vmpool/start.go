package vmpool

import (
	"context"
	"log/slog"
	"time"

	"starling"
	"starling/vmpool/lifecycle"
)

// Start takes a sandbox, makes it the instance of cfg and waits for the function's own initialisation. A Failed error is
// the function's fault and has the error type as its reason; Unavailable is ours.
func (p *Pool) Start(ctx context.Context, cfg InstanceConfig) (*Instance, error) {
	cfg = cfg.withDefaults(p.cfg.Log)
	s, ok := p.shelves[cfg.Version.Config.Runtime]
	if !ok {
		return nil, starling.Errorf(starling.Unavailable, "start instance", "this host does not serve %s", cfg.Version.Config.Runtime)
	}
	if !p.enter() {
		return nil, errClosing
	}
	defer p.starts.Done()
	p.begun.Add(1)
	defer p.calm()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.group.Context(), cancel)()
	begun := time.Now()
	w, err := s.take(ctx)
	if err != nil {
		return nil, err
	}
	i := &Instance{cfg: cfg, pool: p, sandbox: w.sandbox, plug: w.plug, born: w.born, lastUse: begun, ending: make(chan struct{}), weigh: make(chan struct{}, 1), first: true}
	i.life = lifecycle.Instance{Slots: cfg.Version.Config.Concurrency}
	i.life.Step(lifecycle.Take)
	i.logs = capture{sink: cfg.Logs, single: i.life.Slots == 1, version: versionWord(cfg.Version.Number), dropped: &p.dropped}
	i.logs.rec = LogRecord{Function: cfg.Version.Function, Version: cfg.Version.ID, Number: cfg.Version.Number, Instance: cfg.ID}
	p.admit(i)
	if err := i.specialise(ctx, w); err != nil {
		i.abandon(starling.ReasonOf(err))
		p.meters.failed.Inc()
		return nil, startError(err)
	}
	i.took = time.Since(begun) - i.init
	i.mu.Lock()
	act := i.life.Step(lifecycle.Ready)
	i.served = act != lifecycle.Refuse
	i.readyAt = time.Now()
	i.tallyAt = i.readyAt
	i.lastUse = i.readyAt // a long initialisation is no idleness: the keeper settles before it freezes
	i.watched = i.served
	i.mu.Unlock()
	if act == lifecycle.Refuse { // it ended between its last word and ours
		i.wg.Wait()
		return nil, starling.Errorf(starling.Failed, "start instance", "the process ended right after its initialisation").With(starling.ErrExit)
	}
	p.keeper.watch(i)
	p.meters.start.UpdateDuration(begun)
	p.meters.init.Update(i.init.Seconds())
	return i, nil
}

func (c InstanceConfig) withDefaults(log *slog.Logger) InstanceConfig {
	if c.InitTimeout == 0 {
		c.InitTimeout = initTimeout
	}
	if c.LifeMax == 0 {
		c.LifeMax = lifeMax
	}
	if c.Logs == nil {
		c.Logs = DiscardLogs{}
	}
	if c.Log == nil {
		c.Log = log
	}
	return c
}

// startError leaves typed errors alone; any other is a broken sandbox.
func startError(err error) error {
	if starling.KindOf(err) != starling.Internal {
		return err
	}
	return starling.Errorf(starling.Unavailable, "start instance", "%w", err).With(starling.ErrSandboxFailure)
}

// abandon ends an instance that never became ready; nobody hears of it but the caller of Start.
func (i *Instance) abandon(reason string) {
	if i.contract == nil { // watch does not run yet
		close(i.ending)
		i.unplug(false)
		if err := i.sandbox.Close(); err != nil {
			i.cfg.Log.Error("close sandbox", "instance", i.cfg.ID, "error", err)
		}
		i.unplug(true)
		i.pool.gone(i)
		return
	}
	i.doom(lifecycle.Fault, reason)
	i.wg.Wait()
}

var errClosing = starling.Errorf(starling.Unavailable, "start instance", "the host is closing")

package vmpool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/metrics/profile"
	"starling/vmpool/framed"
	"starling/vmpool/lifecycle"
	"starling/vmpool/runtimeapi"
)

var (
	_ Contract = (*framed.Conn)(nil)
	_ Contract = (*runtimeapi.Server)(nil)
)

// InstanceConfig is what turns a sandbox into one instance of one version.
type InstanceConfig struct {
	ID      starling.InstanceID
	Version *starling.Version
	Dir     string   // the unpacked code on this host
	Mount   *os.File // or a mount of it, see Code; used by Start only
	Disk    *Disk    // or a disk of it, see Code; used by Start only
	Layers  []Layer  // see Code; used by Start only
	// Lost is closed when code that the instance asked for cannot be read any more: it ends. nil for never.
	Lost        <-chan struct{}
	Region      string // AWS_REGION of the code
	Logs        LogSink
	InitTimeout time.Duration // the function's own initialisation; 0 means 10 s
	LifeMax     time.Duration // 0 means 2 h; an older instance ends when it is idle
	// Ended is called once, on a goroutine of the instance, when it is gone: reason is an error type or "stopped".
	Ended func(i *Instance, reason string)
	Log   *slog.Logger
}

const (
	initTimeout  = 10 * time.Second
	lifeMax      = 2 * time.Hour
	exitPatience = time.Second            // between the end of a channel and the word of how the process ended, on a busy machine
	wordPatience = 50 * time.Millisecond  // between the end of the processes and that of their connections
	memoryFresh  = time.Second            // how old the memory peak of a REPORT may be
	memoryLong   = 100 * time.Millisecond // a call of this length reads it anew
)

// An Instance is one running copy of one version. Pool.Start makes it ready; it has three goroutines (two readers of its output,
// one that watches for its end), which Close waits for.
type Instance struct {
	cfg      InstanceConfig
	pool     *Pool
	sandbox  Sandbox
	plug     Plug // nil where it can have no network
	guest    bool // plug is a GuestPlug's
	contract Contract
	logs     capture
	outlets  [2]*outlet
	drainer  *drainer // of calls, one at a time
	born     time.Time
	took     time.Duration // taking and attaching
	init     time.Duration // the function's own initialisation

	mu       sync.Mutex // guards what follows; a leaf
	life     lifecycle.Instance
	settled  bool // its CPU is that of its calls
	readyAt  time.Time
	watched  bool // the pool's keeper looks at it
	served   bool // it was ready once: its end is news
	first    bool // the next call is the one that waited for the initialisation
	lastUse  time.Time
	reason   string        // why it ended
	tally    profile.Tally // of the calls that ended
	tallyAt  time.Time     // when it was taken last
	memoryAt time.Time     // when its memory peak was read

	hold   sync.Mutex // held around Pause, Resume and Close of the sandbox, which exclude each other
	frozen bool       // guarded by hold

	ending  chan struct{}  // closed when it must end
	weigh   chan struct{}  // capacity 1: watch is to read the memory peak
	readers sync.WaitGroup // the two readers of its output
	wg      sync.WaitGroup // watch
	retired atomic.Bool
}

// ID returns the instance's name in the cluster.
func (i *Instance) ID() starling.InstanceID { return i.cfg.ID }

// Version returns what runs; shared, do not change it.
func (i *Instance) Version() *starling.Version { return i.cfg.Version }

// Phases returns how long taking and attaching a sandbox and the function's own initialisation took.
func (i *Instance) Phases() (start, init time.Duration) { return i.took, i.init }

// Use returns the number of calls at work and, without any, the time since the last.
func (i *Instance) Use(now time.Time) (busy int, idle time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.life.Busy > 0 {
		return i.life.Busy, 0
	}
	return 0, now.Sub(i.lastUse)
}

// Frozen reports whether its processes are paused now.
func (i *Instance) Frozen() bool {
	i.hold.Lock()
	defer i.hold.Unlock()
	return i.frozen
}

// specialise attaches the code and waits for its initialisation. On an error the sandbox is closed.
func (i *Instance) specialise(ctx context.Context, w *warm) error {
	begun := time.Now()
	v := i.cfg.Version
	if err := i.connect(); err != nil {
		return err
	}
	env := environment(i.cfg, w.sandbox)
	code := Code{Dir: i.cfg.Dir, Mount: i.cfg.Mount, Disk: i.cfg.Disk, Layers: i.cfg.Layers, Env: env, Handler: v.Config.Handler, MemoryMiB: v.Config.MemoryMiB, Account: v.Function.Account, Version: v.ID}
	if err := w.sandbox.Attach(ctx, code); err != nil {
		return i.orLost(fmt.Errorf("attach code: %w", err))
	}
	i.contract = i.newContract(w, env)
	out, errs := w.sandbox.Output()
	i.outlets = [2]*outlet{newOutlet(&i.logs, Stdout, out), newOutlet(&i.logs, Stderr, errs)}
	i.drainer = newDrainer(i.outlets)
	for _, o := range i.outlets {
		i.readers.Go(o.run)
	}
	i.wg.Go(i.watch)
	attached := time.Now()
	i.took = attached.Sub(begun)
	ctx, cancel := context.WithTimeout(ctx, i.cfg.InitTimeout)
	defer cancel()
	err := i.contract.Init(ctx)
	i.init = max(time.Since(attached), 1)
	if err != nil {
		return i.orLost(i.initError(err))
	}
	return nil
}

func (i *Instance) newContract(w *warm, env map[string]string) Contract {
	v := i.cfg.Version
	arn, word := functionARN(i.cfg.Region, v), versionWord(v.Number)
	if w.framed == nil {
		return runtimeapi.New(w.sandbox.Listener(), runtimeapi.Config{ARN: arn, Slots: v.Config.Concurrency,
			Name: string(v.Function.Name), Version: word, Handler: v.Config.Handler})
	}
	w.framed.Specialise(framed.Setup{Handler: v.Config.Handler, Env: env, Root: rootOf(w.sandbox), Function: string(v.Function.Name),
		Version: word, ARN: arn, LogGroup: env["AWS_LAMBDA_LOG_GROUP_NAME"], LogStream: env["AWS_LAMBDA_LOG_STREAM_NAME"], MemoryMiB: v.Config.MemoryMiB})
	return w.framed
}

// initError prefers what the sandbox says of an exit to what the contract saw of it.
func (i *Instance) initError(err error) error {
	if starling.ReasonOf(err) != starling.ErrExit || !i.exitedSoon() {
		return err
	}
	kind, message := exitWords(i.sandbox.Exit())
	return starling.Errorf(starling.Failed, "init function", "the initialisation ended the process: %s", message).With(kind)
}

// exitedSoon waits a moment for the sandbox to say that it is gone.
func (i *Instance) exitedSoon() bool {
	t := time.NewTimer(exitPatience)
	defer t.Stop()
	select {
	case <-i.sandbox.Done():
		return true
	case <-t.C:
		return false
	}
}

func exitWords(e Exit) (kind, message string) {
	switch {
	case e.OutOfMemory:
		return starling.ErrOutOfMemory, "Runtime exited with error: signal: killed (out of memory)"
	case e.Signal != "":
		return starling.ErrExit, "Runtime exited with error: signal: " + e.Signal
	case e.Code == 0:
		return starling.ErrExit, "Runtime exited without providing a reason"
	}
	return starling.ErrExit, fmt.Sprintf("Runtime exited with error: exit status %d", e.Code)
}

// watch ends the instance when its processes are gone or it was told to end. It closes the sandbox, which nobody
// else does, flushes the last output and tells the owner.
func (i *Instance) watch() {
	i.shed()
	for {
		select {
		case <-i.weigh: // while the first call is at work, which would have to read it otherwise
			i.memoryMax(time.Now(), memoryLong)
			continue
		case <-i.sandbox.Done():
			i.lastWords()
			i.doom(lifecycle.Fault, exitReason(i.sandbox.Exit()))
		case <-i.cfg.Lost:
			i.doom(lifecycle.Fault, starling.ErrCodeLost)
		case <-i.ending:
		}
		break
	}
	i.contract.Close() // a call in flight ends now
	for _, o := range i.outlets {
		o.drain() // the driver may close the pipes with the sandbox
	}
	i.unplug(false)
	i.hold.Lock()
	if i.frozen { // some kernels deliver SIGKILL to a frozen process only once it is thawed
		i.frozen = false
		if err := i.sandbox.Resume(); err != nil {
			i.cfg.Log.Warn("thaw before close", "instance", i.cfg.ID, "error", err)
		}
	}
	err := i.sandbox.Close()
	i.hold.Unlock()
	i.unplug(true)
	if err != nil {
		i.cfg.Log.Error("close sandbox", "instance", i.cfg.ID, "error", err)
	}
	i.readers.Wait()
	i.logs.finish()
	i.pool.gone(i)
}

// lastWords gives what the code wrote just before it exited the time to be read: its answer may lie in the socket.
func (i *Instance) lastWords() {
	i.mu.Lock()
	waiting := i.life.State == lifecycle.Starting || i.life.Busy > 0
	i.mu.Unlock()
	if waiting {
		t := time.NewTimer(wordPatience)
		defer t.Stop()
		select {
		case <-t.C:
		case <-i.ending: // the caller read them, or their end
		}
	}
}

func exitReason(e Exit) string {
	kind, _ := exitWords(e)
	return kind
}

// doom steps the life towards its end; the first reason stays.
func (i *Instance) doom(ev lifecycle.Event, reason string) {
	i.mu.Lock()
	act := i.life.Step(ev)
	if i.reason == "" {
		i.reason = reason
	}
	i.mu.Unlock()
	i.act(act)
}

func (i *Instance) act(a lifecycle.Action) {
	if a == lifecycle.Destroy {
		close(i.ending)
	}
}

// Stop ends the instance: at once, or after the calls at work and no further one. It does not wait.
func (i *Instance) Stop(now bool) {
	i.retired.Store(true)
	if now {
		i.doom(lifecycle.Kill, "stopped")
	} else {
		i.doom(lifecycle.Retire, "stopped")
	}
}

// Close ends the instance at once and waits until nothing of it runs. Do not call it from Ended.
func (i *Instance) Close() {
	i.Stop(true)
	i.wg.Wait()
}

// errNotServing refuses a call that came when the instance was ending.
var errNotServing = starling.Errorf(starling.Moved, "invoke", "the instance is ending: ask for another")

// errSlots refuses a call above the instance's slots.
var errSlots = starling.Errorf(starling.Overloaded, "invoke", "every slot of the instance is at work").With("SlotsBusy")

// Invoke runs one call on the caller's goroutine. An error means that the function surely did not start: Moved when
// the instance is ending, Overloaded when every slot is at work.
func (i *Instance) Invoke(inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error) {
	i.mu.Lock()
	act := i.life.Step(lifecycle.Begin)
	first := i.first
	if act != lifecycle.Refuse {
		i.first = false
	}
	state := i.life.State
	i.mu.Unlock()
	switch act {
	case lifecycle.Refuse:
		if state == lifecycle.Busy {
			return starling.Outcome{}, errSlots
		}
		return starling.Outcome{}, errNotServing
	case lifecycle.Thaw:
		if err := i.thaw(); err != nil {
			i.doom(lifecycle.Fault, starling.ErrSandboxFailure)
			i.stepEnd(time.Now())
			i.cfg.Log.Error("thaw instance", "instance", i.cfg.ID, "error", err)
			return starling.Outcome{}, errNotServing
		}
	}
	begun := time.Now()
	if inv.Deadline.IsZero() {
		inv.Deadline = begun.Add(i.cfg.Version.Timeout())
	}
	i.logs.begin(inv.ID, inv.Tail)
	if first {
		i.weigh <- struct{}{}
	}
	out := i.contract.Invoke(inv, sink)
	now := time.Now()
	out.Run = now.Sub(begun)
	if out.ErrorType == runtimeapi.NotStarted && out.Status == starling.Unhandled {
		i.logs.abandon()
		i.doom(lifecycle.Fault, starling.ErrExit)
		i.stepEnd(now)
		return starling.Outcome{}, errNotServing
	}
	if first {
		out.Init = i.init
	}
	i.finish(inv, &out, begun, now)
	return out, nil
}

// finish completes the outcome, writes the last lines and gives the slot back.
func (i *Instance) finish(inv *starling.Invocation, out *starling.Outcome, begun, now time.Time) {
	var says string
	i.blameLoss(out)
	if out.Status == starling.Unhandled {
		says = i.explain(inv, out, begun, now)
	}
	if i.logs.single {
		i.drainer.drain()
	}
	out.MemoryMax = i.account(out, now)
	out.LogTail = i.logs.end(ending{id: inv.ID, now: now, run: out.Run, init: out.Init, memoryMiB: i.cfg.Version.Config.MemoryMiB,
		memoryMax: out.MemoryMax, says: says, tail: inv.Tail})
	if out.Status == starling.Unhandled {
		i.doom(lifecycle.Fault, out.ErrorType)
	} else if err := i.contract.Err(); errors.Is(err, framed.ErrEnds) {
		i.doom(lifecycle.Fault, starling.ErrExit)
	} else if err != nil {
		i.cfg.Log.Warn("instance broke its protocol", "instance", i.cfg.ID, "function", i.cfg.Version.Function, "error", err)
		i.doom(lifecycle.Fault, starling.ErrProtocol)
	}
	i.stepEnd(now)
}

// stepEnd gives the slot back and asks the keeper to look at an instance that became idle.
func (i *Instance) stepEnd(now time.Time) {
	i.mu.Lock()
	act := i.life.Step(lifecycle.End)
	i.lastUse = now
	watch := !i.watched && i.life.State == lifecycle.Idle
	if watch {
		i.watched = true
	}
	i.mu.Unlock()
	i.act(act)
	if watch {
		i.pool.keeper.watch(i)
	}
}

// explain gives an outcome of ours its document, as Lambda words it, and returns the line for the log.
func (i *Instance) explain(inv *starling.Invocation, out *starling.Outcome, begun, now time.Time) string {
	var message string
	switch out.ErrorType {
	case starling.ErrTimedOut:
		limit := i.cfg.Version.Timeout()
		if given := inv.Deadline.Sub(begun); given < limit-50*time.Millisecond {
			limit = given
		}
		message = fmt.Sprintf("Task timed out after %.2f seconds", limit.Seconds())
		out.Error = document(out.ErrorType, fmt.Sprintf("RequestId: %s Error: %s", inv.ID, message))
		return fmt.Sprintf("%s %s %s", now.UTC().Format("2006-01-02T15:04:05.000Z"), inv.ID, message)
	case starling.ErrExit:
		if i.exitedSoon() {
			out.ErrorType, message = exitWords(i.sandbox.Exit())
		} else {
			out.ErrorType, message = starling.ErrProtocol, "The runtime closed its connection in the middle of a call"
		}
	case starling.ErrCodeLost:
		message = lostWords
	case starling.ErrResponseSize:
		message = fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes)", starling.PayloadMax)
	default:
		message = "The runtime broke the protocol of its platform"
		if err := i.contract.Err(); err != nil {
			i.cfg.Log.Warn("instance broke its protocol", "instance", i.cfg.ID, "function", i.cfg.Version.Function, "error", err)
		}
	}
	out.Error = document(out.ErrorType, fmt.Sprintf("RequestId: %s Error: %s", inv.ID, message))
	return fmt.Sprintf("RequestId: %s Error: %s %s", inv.ID, message, out.ErrorType)
}

func document(kind, message string) []byte {
	return fmt.Appendf(nil, `{"errorType":%q,"errorMessage":%q}`, kind, message)
}

// account counts a call that ended in the instance's tally and returns the memory peak.
func (i *Instance) account(out *starling.Outcome, now time.Time) int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tally.Add(out.Run)
	if out.ErrorType == starling.ErrOutOfMemory {
		i.tally.OutOfMemory++
		i.tally.MemoryMax = int64(i.cfg.Version.Config.MemoryMiB) << 20 // its counters may be gone with it
	}
	return i.weighed(now, out.Run)
}

// memoryMax returns the peak as of a moment ago: reading it costs more than a short call.
func (i *Instance) memoryMax(now time.Time, run time.Duration) int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.weighed(now, run)
}

// weighed is memoryMax for a caller that holds i.mu, which it gives up while it reads.
func (i *Instance) weighed(now time.Time, run time.Duration) int64 {
	if run < memoryLong && now.Sub(i.memoryAt) < memoryFresh {
		return i.tally.MemoryMax
	}
	pending := i.tally.Reading()
	i.mu.Unlock()
	stats, err := i.sandbox.Stats()
	i.mu.Lock()
	i.memoryAt = now // not before it is read: another call would report what is not known yet
	if err == nil {
		i.tally.MemoryMax = max(i.tally.MemoryMax, stats.MemoryMax)
		i.tally.Read(stats.CPU, pending)
	}
	return i.tally.MemoryMax
}

// Tally returns what the calls used since it was last asked for, or since the instance was ready.
func (i *Instance) Tally(now time.Time) profile.Tally {
	i.mu.Lock()
	defer i.mu.Unlock()
	active := now.Sub(i.tallyAt)
	i.tallyAt = now
	if i.tally.Calls == 0 {
		active = 0
	}
	return i.tally.Take(active)
}

// thaw resumes the processes of a paused instance, waiting for a pause that is under way.
func (i *Instance) thaw() error {
	i.hold.Lock()
	defer i.hold.Unlock()
	if !i.frozen {
		return nil
	}
	i.frozen = false
	return i.sandbox.Resume()
}

// pause freezes the processes unless a call came meanwhile.
func (i *Instance) pause() error {
	i.hold.Lock()
	defer i.hold.Unlock()
	i.mu.Lock()
	still := i.life.State == lifecycle.Paused
	i.mu.Unlock()
	if !still || i.frozen {
		return nil
	}
	if err := i.sandbox.Pause(); err != nil {
		return err
	}
	i.frozen = true
	return nil
}

package compare

import (
	"time"

	"starling"
	"starling/sched/scale"
	"starling/sim/load"
)

// Config is the world around a policy, the same for all.
type Config struct {
	InstanceMax int           // of one function
	StartingMax int           // of them on their way
	Ramp        int           // see scale.Load
	QueueMax    int           // calls of one function
	QueueAge    time.Duration // longest wait
}

// DefaultConfig returns the limits of a node, of a cluster of 8 hosts.
func DefaultConfig() Config {
	return Config{InstanceMax: starling.ConcurrencyMax, StartingMax: 128, Ramp: 16, QueueMax: starling.QueueMax, QueueAge: starling.QueueAgeMax}
}

// Run replays every function of t under a governor of p, in one goroutine. told, which may be nil, hears from time to
// time how many calls were replayed; Run ends early when it returns false.
func Run(t *Trace, name string, p scale.Policy, cfg Config, told func(calls int) bool) *Result {
	r := newResult(name, cfg.QueueAge)
	for i, calls := range t.Calls {
		if len(calls) == 0 {
			continue
		}
		f := &t.Functions[i]
		newYard(f, p.New(scale.Facts{Slots: max(f.Slots, 1), MemoryMiB: f.MemoryMiB}), cfg, r).run(calls, t.End)
		if told != nil && !told(len(calls)) {
			break
		}
	}
	r.close()
	return r
}

const (
	never      = time.Duration(1<<63 - 1)
	replanRest = time.Millisecond // between two plans of a queue that grows by little, as in package sched
)

// A yard is the instances of one function, its calls, and a scheduler that does what the plan says: as package sched
// asks governors, and with its limits.
type yard struct {
	cfg    Config
	gov    scale.Governor
	result *Result
	now    time.Duration
	start  time.Duration // what a start takes
	memory float64       // GiB
	slots  int

	instances []instance
	free      []int32 // places in instances
	idle      queue[int32]
	open      []int32              // with some slots taken and some not
	busy      int                  // slots
	ends      ends                 // of running calls
	starting  queue[time.Duration] // decisions, oldest first
	waiting   queue[Span]          // oldest first
	plan      scale.Plan
	planned   time.Duration
	queued    int  // calls that waited at the last plan
	stale     bool // instances came or went since
	news      scale.Demand
}

type instance struct {
	born  time.Duration // decided
	ready time.Duration
	idle  time.Duration // since
	used  int
}

func newYard(f *load.Function, g scale.Governor, cfg Config, r *Result) *yard {
	return &yard{cfg: cfg, gov: g, result: r, start: max(f.Start+f.Init, 1), memory: float64(f.MemoryMiB) / 1024, slots: max(f.Slots, 1)}
}

func (y *yard) run(calls []Span, end time.Duration) {
	for next := 0; ; {
		at := y.due()
		arrives := next < len(calls) && calls[next].At <= at
		if arrives {
			at = calls[next].At
		}
		if at >= end {
			break
		}
		y.now = max(y.now, at)
		if arrives {
			y.arrive(calls[next])
			next++
		} else {
			y.happen()
		}
		y.retire()
	}
	y.now = end
	for y.starting.n() > 0 {
		y.paid(y.starting.pop())
	}
	for i := range y.instances {
		if y.instances[i].born != never {
			y.paid(y.instances[i].born)
		}
	}
}

// due returns when something happens that is no arrival.
func (y *yard) due() time.Duration {
	at := never
	if y.plan.Again > 0 {
		at = y.planned + y.plan.Again
	}
	if y.starting.n() > 0 {
		at = min(at, y.starting.first()+y.start)
	}
	if len(y.ends) > 0 {
		at = min(at, y.ends[0].at)
	}
	if y.waiting.n() > 0 {
		at = min(at, y.waiting.first().At+y.cfg.QueueAge)
	}
	if y.idle.n() > 0 && y.there() > y.plan.Keep {
		at = min(at, y.instances[y.idle.first()].idle+y.plan.IdleKeep)
	}
	return at
}

// there returns the instances that serve or are on their way.
func (y *yard) there() int { return y.ready() + y.starting.n() }

func (y *yard) ready() int { return len(y.instances) - len(y.free) }

func (y *yard) arrive(c Span) {
	y.result.Calls++
	y.news.Arrivals++
	if y.waiting.n() >= y.cfg.QueueMax {
		y.result.Refused++
		return
	}
	y.waiting.push(c)
	y.serve()
	if y.plan.Again == 0 || y.plan.Again >= scale.Lively {
		y.ask()
	}
	y.askForQueue()
}

// happen does what is due now, but arrivals.
func (y *yard) happen() {
	for len(y.ends) > 0 && y.ends[0].at <= y.now {
		y.finish(y.ends.pop())
	}
	for y.starting.n() > 0 && y.starting.first()+y.start <= y.now {
		y.begin(y.starting.pop())
	}
	y.serve()
	for y.waiting.n() > 0 && y.waiting.first().At+y.cfg.QueueAge <= y.now {
		y.waiting.pop()
		y.result.waited(y.cfg.QueueAge)
		y.result.Refused++
		y.news.Done++
	}
	if y.plan.Again > 0 && y.planned+y.plan.Again <= y.now {
		y.ask()
	}
	y.askForQueue()
}

func (y *yard) finish(e end) {
	y.news.Done++
	y.news.Busy += e.took
	y.busy--
	i := &y.instances[e.instance]
	if i.used--; i.used == 0 {
		i.idle = y.now
		y.unopen(e.instance)
		y.idle.push(e.instance)
	} else if i.used == y.slots-1 {
		y.open = append(y.open, e.instance)
	}
}

func (y *yard) unopen(id int32) {
	for k, o := range y.open {
		if o == id {
			y.open = append(y.open[:k], y.open[k+1:]...)
			return
		}
	}
}

// begin makes an instance that was decided on at born ready.
func (y *yard) begin(born time.Duration) {
	y.news.Started++
	y.news.Start += y.start
	y.stale = true
	i := instance{born: born, ready: y.now, idle: y.now}
	var id int32
	if n := len(y.free); n > 0 {
		id, y.free = y.free[n-1], y.free[:n-1]
		y.instances[id] = i
	} else {
		id = int32(len(y.instances))
		y.instances = append(y.instances, i)
	}
	y.idle.push(id)
}

// serve gives free slots to waiting calls: of instances at work first, then of the one idle for the shortest time.
func (y *yard) serve() {
	for y.waiting.n() > 0 {
		var id int32
		switch {
		case len(y.open) > 0:
			id = y.open[len(y.open)-1]
		case y.idle.n() > 0:
			id = y.idle.popLast()
			if y.slots > 1 {
				y.open = append(y.open, id)
			}
		default:
			return
		}
		c := y.waiting.pop()
		i := &y.instances[id]
		if i.used++; i.used == y.slots {
			y.unopen(id)
		}
		if i.ready > c.At {
			y.result.Cold++
		}
		y.result.waited(y.now - c.At)
		y.busy++
		y.ends.push(end{y.now + c.Exec, c.Exec, id})
	}
	y.news.Peak = max(y.news.Peak, y.busy)
}

// askForQueue asks for the sake of waiting calls when the picture has changed.
func (y *yard) askForQueue() {
	if n := y.waiting.n(); n > 0 && (y.stale || n > y.queued+y.queued/8 || y.now-y.planned >= replanRest) {
		y.ask()
	}
}

func (y *yard) ask() {
	y.gov.Note(y.now, y.news)
	y.news = scale.Demand{Peak: y.busy}
	l := scale.Load{Waiting: y.waiting.n(), Starting: y.starting.n(), Ready: y.ready(), Busy: y.busy, Ramp: y.cfg.Ramp, Slots: y.slots,
		Left: y.cfg.InstanceMax - y.there(), StartsLeft: y.cfg.StartingMax - y.starting.n()}
	y.plan, y.planned, y.queued, y.stale = y.gov.Plan(y.now, l), y.now, l.Waiting, false
	y.result.Plans++
	for range l.Bound(y.plan.Want - y.there()) {
		y.starting.push(y.now)
		y.result.Starts++
	}
	y.result.Most = max(y.result.Most, y.there())
}

// retire stops what was idle for long enough and is more than is to be kept.
func (y *yard) retire() {
	for y.idle.n() > 0 && y.there() > y.plan.Keep {
		id := y.idle.first()
		if y.now < y.instances[id].idle+y.plan.IdleKeep {
			return
		}
		y.idle.pop()
		y.paid(y.instances[id].born)
		y.instances[id].born = never
		y.free = append(y.free, id)
		y.stale = true
	}
}

// paid adds an instance's life until now.
func (y *yard) paid(born time.Duration) {
	s := (y.now - born).Seconds()
	y.result.InstanceSeconds += s
	y.result.MemorySeconds += s * y.memory
}

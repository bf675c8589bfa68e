package sim

import (
	"time"

	"starling"
	"starling/frontend/overload"
	"starling/sched/flow"
)

// CPU bounds what machines can compute. The zero value has no bound: then Exec of a call is how long it runs. With a
// bound the k-th frontend and the k-th host share one machine, Exec is how much of a processor a call needs, and so is
// Init of a function. Only a static world has bounds.
type CPU struct {
	Cores float64       // of one machine; 0 for no bound
	Door  time.Duration // that a frontend needs for each call, refused ones included
	Shed  bool          // frontends and hosts refuse what overloads their machine, as those of a node do
	Fixed bool          // all calls of an account come through one frontend
}

// A machine is processors that all jobs share evenly: each job gets the same part, one processor at most. That is
// processor sharing, and what a fair kernel gives to instances of equal weight.
type machine struct {
	w      *World
	cores  float64
	had    float64       // seconds of a processor that a job would have got that was there all the time
	at     time.Duration // until which had is counted
	jobs   []job         // a heap by end
	seq    uint64
	turn   uint64 // of the end that is planned
	front  *frontend
	host   *host
	crowd  overload.Crowd
	looks  int
	visits []flow.Demand // what frontends of other machines asked of the host in this window, in the order of their first calls

	level   flow.Level
	tenants []*tenant // by account; nil for one that has nothing here
	all     []*flow.Tenant
}

// A tenant is an account on a machine.
type tenant struct {
	flow.Tenant
	starting int           // instances
	rested   time.Duration // from when on the next may start
}

// A job is some work of a machine.
type job struct {
	end  float64 // in the machine's had
	seq  uint64
	done runner
}

func (j *job) before(o *job) bool { return j.end < o.end || j.end == o.end && j.seq < o.seq }

// addMachines puts frontends and hosts on machines, as many as there are hosts.
func (w *World) addMachines() {
	if w.cfg.CPU.Cores <= 0 {
		return
	}
	if !w.cfg.Static {
		w.fail("configuration: machines with bounds need a static world")
		return
	}
	for _, h := range w.hosts {
		h.machine = &machine{w: w, cores: w.cfg.CPU.Cores, host: h.host}
		h.host.m = h.machine
	}
	for i, f := range w.fronts {
		m := w.hosts[i%len(w.hosts)].machine
		f.machine = m
		f.front.m = m
		if m.front == nil { // a second frontend of a machine is not watched: there is none where CPU is bounded
			m.front = f.front
		}
	}
	for _, h := range w.hosts {
		if m := h.machine; w.cfg.CPU.Shed && m.front != nil {
			m.front.gate = &overload.Gate{Now: func() int64 { return int64(w.now) }}
			h.after(overload.SampleTime, m.look)
		}
	}
}

// look measures the machine as a node does, and has the gate decide once in a window.
func (m *machine) look() {
	m.host.n.after(overload.SampleTime, m.look)
	crowd := float64(len(m.jobs)) / m.cores
	m.crowd.Sample(crowd)
	m.level.Look(crowd, m.all)
	for _, t := range m.all {
		t.Refused = 0
	}
	m.host.bring()
	m.front.gate.Look(crowd)
	if m.looks++; m.looks%overload.Samples > 0 {
		return
	}
	f := m.front
	f.gate.Decide(max(m.crowd.Pressure(), overload.Full(float64(f.open)/frontCalls)), m.visits)
	m.visits = m.visits[:0]
}

// tenant returns the account of f here.
func (m *machine) tenant(f *function) *tenant {
	for len(m.tenants) <= f.account {
		m.tenants = append(m.tenants, nil)
	}
	if m.tenants[f.account] == nil {
		t := &tenant{Tenant: flow.Tenant{Part: 1, Bound: flow.NoBound}} // all calls do here is compute
		m.tenants[f.account], m.all = t, append(m.all, &t.Tenant)
	}
	return m.tenants[f.account]
}

// room reports whether one more call or start of the account may be at work.
func (t *tenant) room() bool { return int64(t.Running+t.starting) < t.Bound }

// mayStart reports whether an instance of f that has waited so long may be started now, as actors/host has it.
func (m *machine) mayStart(f *function, waited time.Duration) bool {
	t := m.tenant(f)
	return int64(t.starting) < m.level.Starts(&t.Tenant, int(m.cores)) && m.w.now >= t.rested && (t.room() || waited >= startWait)
}

// started counts the end of a start of f that took so long, the making of its sandbox included.
func (m *machine) started(f *function, took time.Duration) {
	t := m.tenant(f)
	t.starting--
	if rest := m.level.Rest(&t.Tenant, took, 0); rest > 0 {
		t.rested = m.w.now + rest
	}
}

// takes is room for a call that is refused otherwise.
func (t *tenant) takes() bool {
	if t.room() {
		return true
	}
	t.Refused++
	return false
}

// frontCalls is how many calls a frontend has in flight at most, as package frontend has it.
const frontCalls = 20_000

// visited counts a call that came from a frontend of another machine.
func (m *machine) visited(f starling.FunctionRef) {
	for i := range m.visits {
		if v := &m.visits[i]; v.Function == f {
			v.Arrived, v.Admitted = v.Arrived+1, v.Admitted+1
			return
		}
	}
	m.visits = append(m.visits, flow.Demand{Function: f, Arrived: 1, Admitted: 1})
}

// speed is the part of a processor that each job gets.
func (m *machine) speed() float64 { return min(1, m.cores/float64(len(m.jobs))) }

// pass counts what the jobs got up to now.
func (m *machine) pass() {
	if len(m.jobs) > 0 {
		m.had += m.speed() * (m.w.now - m.at).Seconds()
	}
	m.at = m.w.now
}

// add lets done happen when the machine has done so much work for it.
func (m *machine) add(work time.Duration, done runner) {
	m.pass()
	m.seq++
	m.jobs = append(m.jobs, job{m.had + work.Seconds(), m.seq, done})
	for i := len(m.jobs) - 1; i > 0; {
		p := (i - 1) / 2
		if !m.jobs[i].before(&m.jobs[p]) {
			break
		}
		m.jobs[i], m.jobs[p] = m.jobs[p], m.jobs[i]
		i = p
	}
	m.plan()
}

// plan has the machine woken at the end of the job that ends next.
func (m *machine) plan() {
	m.turn++
	if len(m.jobs) == 0 {
		return
	}
	d := time.Duration((m.jobs[0].end-m.had)/m.speed()*float64(time.Second)) + 1 // rounded up: never too early
	m.w.at(d, machineEnd{m, m.turn})
}

// A machineEnd is when the next job of a machine ends, if no other has come or gone since it was planned.
type machineEnd struct {
	m    *machine
	turn uint64
}

func (e machineEnd) run(w *World) {
	m := e.m
	if m.turn != e.turn {
		return
	}
	m.pass()
	for len(m.jobs) > 0 && m.jobs[0].end <= m.had {
		done := m.pop()
		w.at(0, done)
	}
	m.plan()
}

func (m *machine) pop() runner {
	done, last := m.jobs[0].done, len(m.jobs)-1
	m.jobs[0] = m.jobs[last]
	m.jobs[last] = job{}
	m.jobs = m.jobs[:last]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if m.jobs[c].before(&m.jobs[least]) {
				least = c
			}
		}
		if least == i {
			return done
		}
		m.jobs[i], m.jobs[least] = m.jobs[least], m.jobs[i]
		i = least
	}
}

package sched

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"starling"
	"starling/actors/wire"
	"starling/sched/ledger"
	"starling/sched/scale"
)

// TestTranscripts replays sched/testdata: each command is one event, each block below it the effects. The clock
// moves by the word "after". Node 10 and up are frontends, below 10 hosts.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := &transcript{t: t}
		datadriven.RunTest(t, path, w.run)
	})
}

type transcript struct {
	t   *testing.T
	s   *Scheduler
	cfg Config
	now time.Time

	drawn  uint64                // call ids
	coming []starling.InstanceID // starts that ready answers
}

func (w *transcript) run(t *testing.T, d *datadriven.TestData) string {
	if w.s == nil {
		w.cfg = DefaultConfig()
		w.now = time.Unix(1_700_000_000, 0)
	}
	if d.Cmd == "new" {
		w.configure(d)
		w.s = New(w.cfg, rand.New(rand.NewPCG(1, 1)))
		return ""
	}
	w.now = w.now.Add(duration(d, "after", 0))
	ev := w.event(d)
	if ev == nil {
		return w.question(d)
	}
	effects := w.s.Step(w.now, ev)
	for _, e := range effects {
		if m, ok := e.Body.(*wire.Start); ok {
			w.coming = append(w.coming, m.Instance)
		}
	}
	out := render(effects)
	if err := w.s.Check(); err != nil {
		t.Fatalf("%s: %s: %v", d.Pos, d.Cmd, err)
	}
	return out
}

func (w *transcript) configure(d *datadriven.TestData) {
	w.cfg = DefaultConfig()
	if keep := duration(d, "keep", 0); keep > 0 {
		w.cfg.Policy = scale.Fixed{KeepAlive: keep}
	}
	w.cfg.Bounds.Function = number(d, "queue", w.cfg.Bounds.Function)
	w.cfg.Bounds.Age = duration(d, "age", w.cfg.Bounds.Age)
	w.cfg.HostMax = number(d, "host-max", w.cfg.HostMax)
	w.cfg.FunctionMax = number(d, "function-max", w.cfg.FunctionMax)
	w.cfg.Audit = duration(d, "audit", w.cfg.Audit)
}

// event turns a command into an event; nil when it only asks.
func (w *transcript) event(d *datadriven.TestData) Event {
	from := starling.NodeID(number(d, "from", 10))
	host := starling.NodeID(number(d, "host", 1))
	epoch := starling.Epoch(number(d, "epoch", int(w.s.epoch)))
	inst := starling.InstanceID{Partition: 1, Epoch: starling.Epoch(number(d, "of", int(w.s.epoch))), Seq: uint64(number(d, "i", 1))}
	switch d.Cmd {
	case "activate":
		return Activate{Partition: 1, Epoch: epoch, Range: w.keys(d), Hosts: nodes(d, "hosts"), Again: d.HasArg("again"), Fronts: nodes(d, "fronts"), Missing: nodes(d, "missing")}
	case "deactivate":
		return Deactivate{}
	case "lease-until":
		return LeaseUntil{w.now.Add(duration(d, "in", time.Hour))}
	case "version":
		c := starling.Config{Runtime: starling.Python311, Concurrency: number(d, "slots", 1), InstanceMax: number(d, "most", 0), MemoryMiB: number(d, "memory", 128), Isolation: starling.Isolation(text(d, "isolation", ""))}
		return VersionKnown{&starling.Version{ID: starling.VersionID(number(d, "v", 1)), Config: c.WithDefaults(),
			Function: starling.FunctionRef{Account: starling.AccountID(text(d, "owner", "acme")), Name: starling.FunctionName(text(d, "fn", "f"))}}, number(d, "account", 1000)}
	case "provisioned":
		var list []VersionKnown
		for _, n := range nodes(d, "v") {
			c := starling.Config{Runtime: starling.Python311, Provisioned: number(d, "n", 0)}
			if at := arg(d, "at"); at != nil {
				c.Schedule = []starling.Provision{{At: "00:00"}, {At: at[0], Count: number(d, "count", 0)}}
			}
			list = append(list, VersionKnown{&starling.Version{ID: starling.VersionID(n), Config: c.WithDefaults(),
				Function: starling.FunctionRef{Account: "acme", Name: starling.FunctionName(text(d, "fn", "f"))}}, 1000})
		}
		return Provisioned{list}
	case "account":
		return AccountKnown{Account: "acme", ConcurrencyMax: number(d, "limit", 1000)}
	case "borrow":
		b := &wire.Borrow{Account: "acme", Partition: starling.PartitionID(number(d, "of", 2)), Epoch: epoch, Keys: starling.Range{Hi: ledger.KeyOf("acme")},
			Seq: uint64(number(d, "seq", 1)), Seen: uint64(number(d, "saw", 0)), Held: uint32(number(d, "held", 0)), Need: uint32(number(d, "want", 0)), Want: uint32(number(d, "want", 0))}
		if !d.HasArg("stranger") {
			b.Term = wire.Term{Epoch: w.s.epoch}
		}
		return Message{from, b}
	case "lend":
		return Message{from, &wire.Lend{Account: "acme", Partition: 1, Term: wire.Term{Epoch: epoch}, Seq: uint64(number(d, "seq", 9)), Number: uint64(number(d, "number", 1)),
			Permits: uint32(number(d, "permits", 0)), Limit: uint32(number(d, "limit", 1000)),
			Epoch: starling.Epoch(number(d, "life", 3))}}
	case "audit":
		return Message{from, &wire.Audit{Account: "acme", Partition: 2, Term: wire.Term{Epoch: epoch}}}
	case "version-gone":
		return VersionGone{starling.VersionID(number(d, "v", 1))}
	case "node-down":
		return NodeDown{starling.NodeID(number(d, "node", 1))}
	case "tick":
		return Tick{}
	case "acquire":
		return Message{from, &wire.Acquire{Call: uint64(number(d, "call", 1)), Partition: 1, Epoch: epoch, Key: 5, Version: starling.VersionID(number(d, "v", 1)),
			Wait: duration(d, "wait", time.Minute)}}
	case "cancel":
		return Message{from, &wire.Cancel{Partition: 1, Call: uint64(number(d, "call", 1))}}
	case "release":
		return Message{from, &wire.Release{Partition: 1, Epoch: epoch, Leases: leases(d), Demand: demand(d)}}
	case "renew":
		return Message{from, &wire.Renew{Partition: 1, Epoch: epoch, Leases: leases(d), Demand: demand(d)}}
	case "report":
		r := &wire.HostReport{Host: host, Zone: starling.Zone(text(d, "zone", "")), FreeMiB: uint32(number(d, "free", 1024)), TotalMiB: 1024, Draining: d.HasArg("draining"),
			Instances: uint32(number(d, "instances", 99))}
		for _, word := range arg(d, "gives") {
			r.Isolations |= starling.SetOf(starling.Isolation(word))
		}
		for _, v := range nodes(d, "code") {
			r.Versions = append(r.Versions, starling.VersionID(v))
		}
		return Message{host, r}
	case "started":
		return Message{host, &wire.Started{Partition: 1, Host: host, Instance: inst, Start: duration(d, "start", 5*time.Millisecond), Init: duration(d, "init", 20*time.Millisecond)}}
	case "start-failed":
		return Message{host, &wire.StartFailed{Partition: 1, Host: host, Instance: inst, Fault: starling.ParseKind(text(d, "fault", "failed")),
			Reason: text(d, "reason", starling.ErrInit), Message: "as the host said"}}
	case "exited":
		return Message{host, &wire.Exited{Partition: 1, Host: host, Instance: inst, Reason: text(d, "reason", starling.ErrExit)}}
	case "fenced":
		m := &wire.Fenced{Partition: 1, Epoch: epoch, Host: host, Instances: w.reports(d)}
		if mean := duration(d, "run", 0); mean > 0 {
			m.Runs = []wire.RunReport{{Version: 1, Mean: mean}}
		}
		return Message{host, m}
	case "at-work":
		m := &wire.AtWork{Partition: 1, Epoch: w.s.epoch, Hosts: nodes(d, "hosts"), More: d.HasArg("more")}
		for _, id := range leases(d) {
			inst.Epoch = starling.Epoch(number(d, "of", int(w.s.epoch)-1))
			m.Leases = append(m.Leases, starling.Lease{ID: id, Partition: 1, Epoch: inst.Epoch, Version: starling.VersionID(number(d, "v", 1)), Instance: inst, Host: host, Key: 5})
		}
		return Message{from, m}
	}
	return nil
}

// calls is many acquires at one instant; the grants are given back "busy" later, with the report that frontends send.
func (w *transcript) calls(d *datadriven.TestData) string {
	n, starts, grants := number(d, "n", 1), 0, &wire.Release{Partition: 1, Epoch: w.s.epoch}
	for range n {
		w.drawn++
		for _, e := range w.s.Step(w.now, Message{10, &wire.Acquire{Call: w.drawn, Partition: 1, Epoch: w.s.epoch, Key: 5, Version: 1, Wait: time.Minute}}) {
			switch m := e.Body.(type) {
			case *wire.Start:
				starts++
				w.coming = append(w.coming, m.Instance)
			case *wire.Grant:
				grants.Leases = append(grants.Leases, m.Lease.ID)
			}
		}
	}
	w.finish(grants, duration(d, "busy", 0))
	return fmt.Sprintf("%d granted, %d starts", len(grants.Leases), starts)
}

// finish ends calls and reports them.
func (w *transcript) finish(r *wire.Release, busy time.Duration) {
	if busy == 0 || len(r.Leases) == 0 {
		return
	}
	w.now = w.now.Add(busy)
	n := len(r.Leases)
	r.Demand = []wire.Demand{{Version: 1, Arrivals: uint32(n), Done: uint32(n), Busy: time.Duration(n) * busy}}
	for _, e := range w.s.Step(w.now, Message{10, r}) {
		if m, ok := e.Body.(*wire.Start); ok {
			w.coming = append(w.coming, m.Instance)
		}
	}
}

// ready is the answer of the hosts to all starts that calls and wait have seen.
func (w *transcript) ready(d *datadriven.TestData) string {
	granted := &wire.Release{Partition: 1, Epoch: w.s.epoch}
	coming := w.coming
	w.coming = nil
	for _, id := range coming {
		for _, e := range w.s.Step(w.now, Message{1, &wire.Started{Partition: 1, Host: 1, Instance: id}}) {
			switch m := e.Body.(type) {
			case *wire.Start:
				w.coming = append(w.coming, m.Instance)
			case *wire.Grant:
				granted.Leases = append(granted.Leases, m.Lease.ID)
			}
		}
	}
	w.finish(granted, duration(d, "busy", 0))
	return fmt.Sprintf("%d ready, %d granted", len(coming), len(granted.Leases))
}

// wait lets time pass as the shell does, and says what happens when, but for audits and look-ups of the account. With "start", hosts answer the
// last start so much later.
func (w *transcript) wait(d *datadriven.TestData) string {
	var b strings.Builder
	begin, start := w.now, duration(d, "start", 0)
	due := begin.Add(start)
	for end := w.now.Add(duration(d, "for", time.Second)); w.now.Before(end); {
		w.now = w.now.Add(100 * time.Millisecond)
		for _, e := range w.s.Step(w.now, Tick{}) {
			switch m := e.Body.(type) {
			case *wire.Start:
				w.coming = append(w.coming, m.Instance)
				due = w.now.Add(start)
			case *wire.Fence:
				continue
			}
			if e.Account != "" {
				continue
			}
			fmt.Fprintf(&b, "%v: %s", w.now.Sub(begin), render([]Effect{e}))
		}
		if start > 0 && len(w.coming) > 0 && !w.now.Before(due) {
			fmt.Fprintf(&b, "%v: %s\n", w.now.Sub(begin), w.ready(d))
		}
		if err := w.s.Check(); err != nil {
			w.t.Fatalf("%s: %v", d.Pos, err)
		}
	}
	return b.String()
}

func demand(d *datadriven.TestData) []wire.Demand {
	if number(d, "done", 0)+number(d, "arrivals", 0) == 0 {
		return nil
	}
	return []wire.Demand{{Version: starling.VersionID(number(d, "v", 1)), Arrivals: uint32(number(d, "arrivals", 0)), Done: uint32(number(d, "done", 0)), Busy: duration(d, "busy", 0)}}
}

// keys returns the range of the partition: all, or those "below" or "from" the key of the account.
func (w *transcript) keys(d *datadriven.TestData) starling.Range {
	switch text(d, "keys", "all") {
	case "below":
		return starling.Range{Hi: ledger.KeyOf("acme")}
	case "from":
		return starling.Range{Lo: ledger.KeyOf("acme")}
	}
	return starling.Range{}
}

// reports reads the lines under a fenced command: "i=1 of=1 v=1 ready leases=(3)".
func (w *transcript) reports(d *datadriven.TestData) []wire.InstanceReport {
	var out []wire.InstanceReport
	for _, line := range strings.Split(d.Input, "\n") {
		if line == "" {
			continue
		}
		cmd, args, err := datadriven.ParseLine("x " + line)
		if err != nil {
			w.t.Fatal(err)
		}
		l := &datadriven.TestData{Cmd: cmd, CmdArgs: args, Pos: d.Pos}
		id := starling.InstanceID{Partition: 1, Epoch: starling.Epoch(number(l, "of", 1)), Seq: uint64(number(l, "i", 1))}
		r := wire.InstanceReport{Instance: id, Key: 5, Version: starling.VersionID(number(l, "v", 1)), Ready: l.HasArg("ready"), Idle: duration(l, "idle", 0)}
		for _, n := range leases(l) {
			r.Leases = append(r.Leases, starling.Lease{ID: n, Partition: 1, Epoch: id.Epoch, Instance: id, Slots: 1})
			r.Busy++
		}
		out = append(out, r)
	}
	return out
}

func (w *transcript) question(d *datadriven.TestData) string {
	st := w.s.Status()
	switch d.Cmd {
	case "status":
		return fmt.Sprintf("%s granting=%t instances=%d starting=%d leased=%d waiting=%d", st.Phase, st.Granting, st.Instances, st.Starting, st.Leased, st.Waiting)
	case "plan":
		for _, of := range w.s.inOrder() {
			if v := w.s.statusOf(of); v.Version == starling.VersionID(number(d, "v", 1)) {
				return fmt.Sprintf("wanted=%d kept=%d floor=%d ready=%d starting=%d waiting=%d calls=%d cold=%d refused=%d", v.Wanted, v.Kept, v.Floor, v.Ready, v.Starting, v.Waiting,
					v.Arrivals, v.Cold, v.Refused)
			}
		}
		return "forgotten"
	case "calls":
		return w.calls(d)
	case "ready":
		return w.ready(d)
	case "wait":
		return w.wait(d)
	case "next-tick":
		if n := w.s.NextTick(); !n.IsZero() {
			return n.Sub(w.now).String()
		}
		return "none"
	}
	w.t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	return ""
}

func render(effects []Effect) string {
	var b strings.Builder
	for _, e := range effects {
		switch m := e.Body.(type) {
		case nil:
			if e.Account != "" {
				fmt.Fprintf(&b, "look up account %s\n", e.Account)
				continue
			}
			fmt.Fprintf(&b, "look up version %d\n", e.Version)
		case *wire.Borrow:
			fmt.Fprintf(&b, "borrow %s from %s: holds %d, wants %d, saw %d\n", m.Account, whom(e), m.Held, m.Want, m.Seen)
		case *wire.Lend:
			fmt.Fprintf(&b, "lend %s to %s: %d of %d\n", m.Account, whom(e), m.Permits, m.Limit)
		case *wire.Audit:
			fmt.Fprintf(&b, "audit %s at %s\n", m.Account, whom(e))
		case *wire.Grant:
			fmt.Fprintf(&b, "grant %s call %d: lease %s on %s at %s", e.To, m.Call, leaseName(m.Lease.ID), m.Lease.Instance, m.Lease.Host)
			if p := m.Lease.Phases; p != (starling.Phases{}) {
				fmt.Fprintf(&b, " (queue %v place %v start %v init %v)", p.Queue, p.Place, p.Start, p.Init)
			}
			b.WriteString("\n")
		case *wire.Reject:
			fmt.Fprintf(&b, "reject %s call %d: %s %s, %s", e.To, m.Call, m.Reject, m.Reason, m.Message)
			if m.After > 0 {
				fmt.Fprintf(&b, ", retry after %v", m.After.Round(time.Millisecond))
			}
			b.WriteString("\n")
		case *wire.Recall:
			fmt.Fprintf(&b, "recall from %s: %s\n", e.To, leaseNames(m.Leases))
		case *wire.Renewed:
			fmt.Fprintf(&b, "renewed %s epoch %d: %s for %v\n", e.To, m.Epoch, leaseNames(m.Leases), m.TTL)
		case *wire.Start:
			fmt.Fprintf(&b, "start %s of version %d at %s\n", m.Instance, m.Version, e.To)
		case *wire.Stop:
			fmt.Fprintf(&b, "stop %s at %s now=%t\n", m.Instance, e.To, m.Now)
		case *wire.Fence:
			fmt.Fprintf(&b, "fence %s at epoch %d\n", e.To, m.Epoch)
		case *wire.Census:
			fmt.Fprintf(&b, "ask %s what is at work on %v\n", e.To, m.Hosts)
		}
	}
	return b.String()
}

// whom names the partition, or the range, that a message goes to.
func whom(e Effect) string {
	if e.Partition != 0 {
		return fmt.Sprintf("%s of %s", e.Partition, e.To)
	}
	return e.Keys.String()
}

// leaseName prints slot.generation.
func leaseName(id starling.LeaseID) string { return fmt.Sprintf("%d.%d", uint32(id), uint64(id)>>32) }

func leaseNames(ids []starling.LeaseID) string {
	var out []string
	for _, id := range ids {
		out = append(out, leaseName(id))
	}
	return strings.Join(out, " ")
}

func arg(d *datadriven.TestData, key string) []string {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			return a.Vals
		}
	}
	return nil
}

func text(d *datadriven.TestData, key, or string) string {
	if v := arg(d, key); len(v) == 1 {
		return v[0]
	}
	return or
}

func number(d *datadriven.TestData, key string, or int) int {
	n := or
	if v := text(d, key, ""); v != "" {
		if _, err := fmt.Sscan(v, &n); err != nil {
			d.Fatalf(nil, "%s: %v", key, err)
		}
	}
	return n
}

func duration(d *datadriven.TestData, key string, or time.Duration) time.Duration {
	v := text(d, key, "")
	if v == "" {
		return or
	}
	n, err := time.ParseDuration(v)
	if err != nil {
		panic(err)
	}
	return n
}

func nodes(d *datadriven.TestData, key string) []starling.NodeID {
	var out []starling.NodeID
	for _, v := range arg(d, key) {
		var n uint64
		if _, err := fmt.Sscan(v, &n); err != nil {
			panic(err)
		}
		out = append(out, starling.NodeID(n))
	}
	return out
}

// leases reads leases=(slot.generation, …).
func leases(d *datadriven.TestData) []starling.LeaseID {
	var out []starling.LeaseID
	for _, v := range arg(d, "leases") {
		var slot, gen uint64
		if _, err := fmt.Sscanf(v, "%d.%d", &slot, &gen); err != nil {
			panic(err)
		}
		out = append(out, starling.LeaseID(gen<<32|slot))
	}
	return out
}

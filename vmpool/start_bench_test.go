package vmpool_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
)

// A recorder is a driver that remembers its sandboxes, for figures that an instance does not tell.
type recorder struct {
	vmpool.Driver
	mu    sync.Mutex
	boxes []vmpool.Sandbox
}

// BuildTemplate returns a template whose sandboxes are remembered.
func (r *recorder) BuildTemplate(ctx context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	t, err := r.Driver.BuildTemplate(ctx, spec)
	return &recordedTemplate{t, r}, err
}

type recordedTemplate struct {
	vmpool.Template
	r *recorder
}

// Clone remembers the sandbox.
func (t *recordedTemplate) Clone(ctx context.Context) (vmpool.Sandbox, error) {
	return t.remember(t.Template.Clone(ctx))
}

// CloneBehind does, too.
func (t *recordedTemplate) CloneBehind(ctx context.Context) (vmpool.Sandbox, error) {
	if behind, ok := t.Template.(vmpool.BehindCloner); ok {
		return t.remember(behind.CloneBehind(ctx))
	}
	return t.Clone(ctx)
}

func (t *recordedTemplate) remember(s vmpool.Sandbox, err error) (vmpool.Sandbox, error) {
	if err == nil {
		t.r.mu.Lock()
		t.r.boxes = append(t.r.boxes, s)
		t.r.mu.Unlock()
	}
	return s, err
}

// last returns the sandbox that was made last.
func (r *recorder) last() vmpool.Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.boxes[len(r.boxes)-1]
}

// subject is one runtime with a function that answers what it is asked.
type subject struct {
	name string
	v    *starling.Version
	dir  string
}

func subjects(b *testing.B) (out []subject) {
	b.Helper()
	for _, c := range []struct {
		name, handler, file, code string
		rt                        starling.Runtime
	}{
		{"python", "main.h", "main.py", "def h(event, context): return event", starling.Python311},
		{"node", "main.h", "main.js", "exports.h = async (event) => event", starling.NodeJS20},
		{"go", "bootstrap", "", "", starling.Provided},
	} {
		v, dir := version(b, c.rt, c.handler)
		if c.file == "" {
			dir = goBootstrap(b, "./runtimeapi/testdata/echo")
		} else {
			v, dir = version(b, c.rt, c.handler, c.file, c.code)
		}
		for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
			os.Chmod(up, 0o755)
		}
		out = append(out, subject{c.name, v, dir})
	}
	return out
}

// isolations are those of STARLING_BENCH_ISOLATION, or the two whose sandboxes are not machines.
func isolations() []starling.Isolation {
	if word := os.Getenv("STARLING_BENCH_ISOLATION"); word != "" {
		return []starling.Isolation{starling.Isolation(word)}
	}
	return []starling.Isolation{starling.IsolationProcess, starling.IsolationGVisor}
}

// report adds the middle and the 99th percentile of the samples, in milliseconds.
func report(b *testing.B, name string, samples []time.Duration) {
	b.Helper()
	slices.Sort(samples)
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(samples[(len(samples)-1)*q/100].Microseconds())/1000, fmt.Sprintf("%s-p%d-ms", name, q))
	}
}

// first starts an instance and makes its first call, which is what a cold call waits for at its host.
func first(b *testing.B, p *vmpool.Pool, s subject) (*vmpool.Instance, time.Duration) {
	b.Helper()
	began := time.Now()
	i := start(b, p, s.v, s.dir, nil)
	if out, _, _ := call(b, i, `{"text":"x"}`); out.Status != starling.Succeeded {
		b.Fatalf("%+v", out)
	}
	return i, time.Since(began)
}

// BenchmarkStart measures a start and its first call: with a warm sandbox in the pool, and with none. Run it with -benchtime=500x.
func BenchmarkStart(b *testing.B) {
	for _, isolation := range isolations() {
		for _, from := range []struct {
			name string
			size int
		}{{"pool", 1}, {"nothing", 0}} {
			for _, s := range subjects(b) {
				b.Run(fmt.Sprintf("%s/%s/%s", isolation, from.name, s.name), func(b *testing.B) {
					p, r := recordedPool(b, isolation, map[starling.Runtime]int{s.v.Config.Runtime: from.size})
					var took []time.Duration
					var cpu time.Duration
					for b.Loop() {
						for p.Stock()[s.v.Config.Runtime] < from.size {
							time.Sleep(time.Millisecond)
						}
						i, d := first(b, p, s)
						took = append(took, d)
						if from.size == 0 {
							if st, err := r.last().Stats(); err == nil {
								cpu += st.CPU
							}
						}
						i.Close()
					}
					report(b, "start", took)
					if from.size == 0 {
						b.ReportMetric(float64(cpu.Microseconds())/1000/float64(len(took)), "sandbox-cpu-ms")
					}
				})
			}
		}
	}
}

// BenchmarkWarm measures a call of an instance that is neither frozen nor new.
func BenchmarkWarm(b *testing.B) {
	for _, isolation := range isolations() {
		for _, s := range subjects(b) {
			b.Run(fmt.Sprintf("%s/%s", isolation, s.name), func(b *testing.B) {
				p, _ := recordedPool(b, isolation, map[starling.Runtime]int{s.v.Config.Runtime: 0})
				i, _ := first(b, p, s)
				defer i.Close()
				var took []time.Duration
				for b.Loop() {
					began := time.Now()
					call(b, i, `{"text":"x"}`)
					took = append(took, time.Since(began))
				}
				report(b, "call", took)
			})
		}
	}
}

// BenchmarkSustained starts instances for 30 s while the pool refills: a number of them at once, one after the other, and so many a
// second that the refill keeps up. A warm instance is called all the while, and for 5 s before, when nothing else is done. Run it
// with -benchtime=1x.
func BenchmarkSustained(b *testing.B) {
	const alone, sustained, stock = 5 * time.Second, 30 * time.Second, 8
	for _, isolation := range isolations() {
		for _, s := range subjects(b) {
			for _, load := range []struct {
				name string
				at   int           // starters
				each time.Duration // least time from one start of a starter to the next
			}{{"c=1", 1, 0}, {"c=2", 2, 0}, {"c=4", 4, 0}, {"rate=10", 4, 400 * time.Millisecond}} {
				b.Run(fmt.Sprintf("%s/%s/%s", isolation, s.name, load.name), func(b *testing.B) {
					p, _ := recordedPool(b, isolation, map[starling.Runtime]int{s.v.Config.Runtime: stock})
					warm, _ := first(b, p, s)
					defer warm.Close()
					for p.Stock()[s.v.Config.Runtime] < stock {
						time.Sleep(time.Millisecond)
					}
					before := callsUntil(b, warm, time.Now().Add(alone))
					end := time.Now().Add(sustained)
					var mu sync.Mutex
					var took []time.Duration
					var wg sync.WaitGroup
					for n := range load.at {
						wg.Go(func() {
							next := time.Now().Add(load.each * time.Duration(n) / time.Duration(load.at))
							for next.Before(end) {
								time.Sleep(time.Until(next))
								i, d := first(b, p, s)
								i.Close()
								mu.Lock()
								took = append(took, d)
								mu.Unlock()
								next = latest(next.Add(load.each), time.Now())
							}
						})
					}
					calls := callsUntil(b, warm, end)
					wg.Wait()
					b.ReportMetric(float64(len(took))/sustained.Seconds(), "starts/s")
					report(b, "start", took)
					report(b, "warm-call", calls)
					report(b, "warm-call-alone", before)
				})
			}
		}
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// callsUntil calls i with a pause of 2 ms between two calls and returns how long each took.
func callsUntil(b *testing.B, i *vmpool.Instance, end time.Time) (took []time.Duration) {
	for time.Now().Before(end) {
		began := time.Now()
		call(b, i, `{"text":"x"}`)
		took = append(took, time.Since(began))
		time.Sleep(2 * time.Millisecond)
	}
	return took
}

// BenchmarkIdle keeps b.N instances that answered one call and are frozen, and reports what each holds. Run it with -benchtime=20x.
func BenchmarkIdle(b *testing.B) {
	for _, isolation := range isolations() {
		for _, s := range subjects(b) {
			b.Run(fmt.Sprintf("%s/%s", isolation, s.name), func(b *testing.B) {
				p, r := recordedPool(b, isolation, map[starling.Runtime]int{s.v.Config.Runtime: 0})
				var all []*vmpool.Instance
				for b.Loop() {
					i, _ := first(b, p, s)
					all = append(all, i)
				}
				for _, i := range all {
					for !i.Frozen() {
						time.Sleep(time.Millisecond)
					}
				}
				var group, pss int64
				for _, box := range r.boxes {
					if st, err := box.Stats(); err == nil {
						group += st.MemoryBytes >> 10
					}
					for _, pid := range process.Processes(box) {
						pss += proportional(pid)
					}
				}
				n := float64(len(all)) * 1024
				b.ReportMetric(float64(group)/n, "cgroup-MiB")
				b.ReportMetric(float64(pss)/n, "pss-MiB")
				for _, i := range all {
					i.Close()
				}
			})
		}
	}
}

// proportional returns a process's proportional memory in KiB.
func proportional(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

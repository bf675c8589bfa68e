package process_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process/processtest"
)

// report adds the middle and the 99th percentile of the samples.
func report(b *testing.B, name string, samples []time.Duration) {
	b.Helper()
	slices.Sort(samples)
	at := func(q float64) float64 {
		return float64(samples[int(q*float64(len(samples)-1))].Microseconds())
	}
	b.ReportMetric(at(.50), name+"-p50-µs")
	b.ReportMetric(at(.99), name+"-p99-µs")
}

// BenchmarkPython measures a sandbox's way: cloned, its interpreter ready, given code, first byte of an answer.
func BenchmarkPython(b *testing.B) {
	d := newDriver(b, nil)
	tpl := template(b, d, starling.Python311)
	dir := codeDir(b, map[string]string{"main.py": "answer = 42\n"})
	var cloned, ready, attached, first, closed []time.Duration
	for b.Loop() {
		t0 := time.Now()
		x := clone(b, tpl)
		t1 := time.Now()
		x.MustPython("import sys; sys.path.insert(0, '/var/task')")
		t2 := time.Now()
		must(b, x.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}))
		t3 := time.Now()
		x.MustPython("import main; out = main.answer")
		t4 := time.Now()
		must(b, x.Close())
		cloned, ready, attached = append(cloned, t1.Sub(t0)), append(ready, t2.Sub(t0)), append(attached, t3.Sub(t2))
		first, closed = append(first, t4.Sub(t2)), append(closed, time.Since(t4))
	}
	report(b, "clone", cloned)
	report(b, "ready", ready)
	report(b, "attach", attached)
	report(b, "first-byte", first)
	report(b, "close", closed)
}

// BenchmarkProvided measures a sandbox whose bootstrap is a static program.
func BenchmarkProvided(b *testing.B) {
	d := newDriver(b, nil)
	tpl := template(b, d, starling.Provided)
	dir := codeDir(b, nil)
	raw, err := os.ReadFile(processtest.Guest) // any static program will do: its usage error ends it at once
	must(b, err)
	must(b, os.WriteFile(filepath.Join(dir, "bootstrap"), raw, 0o755))
	var cloned, attached, closed []time.Duration
	for b.Loop() {
		t0 := time.Now()
		x := clone(b, tpl)
		t1 := time.Now()
		must(b, x.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}))
		t2 := time.Now()
		must(b, x.Close())
		cloned, attached, closed = append(cloned, t1.Sub(t0)), append(attached, t2.Sub(t1)), append(closed, time.Since(t2))
	}
	report(b, "clone", cloned)
	report(b, "attach", attached)
	report(b, "close", closed)
}

// BenchmarkLayers measures what layers add to giving code, in turn without, with one and with five.
func BenchmarkLayers(b *testing.B) {
	d := newDriver(b, nil)
	tpl := template(b, d, starling.Python311)
	dir := codeDir(b, map[string]string{"main.py": "answer = 42\n"})
	counts := []int{0, 1, starling.LayersMax}
	var layers []vmpool.Layer
	for range starling.LayersMax {
		layers = append(layers, vmpool.Layer{Dir: codeDir(b, map[string]string{"data": "x"})})
	}
	attached := make([][]time.Duration, len(counts))
	for b.Loop() {
		for i, n := range counts {
			x := clone(b, tpl)
			x.MustPython("pass")
			began := time.Now()
			must(b, x.Attach(context.Background(), vmpool.Code{Dir: dir, Layers: layers[:n], MemoryMiB: 128}))
			attached[i] = append(attached[i], time.Since(began))
			must(b, x.Close())
		}
	}
	for i, n := range counts {
		report(b, fmt.Sprint("layers=", n), attached[i])
	}
}

// BenchmarkCloneMany fills a pool from eight callers at once, then gives code to all of it from eight callers at once.
func BenchmarkCloneMany(b *testing.B) {
	d := newDriver(b, nil)
	tpl := template(b, d, starling.Provided)
	dir := codeDir(b, nil)
	raw, err := os.ReadFile(processtest.Guest)
	must(b, err)
	must(b, os.WriteFile(filepath.Join(dir, "bootstrap"), raw, 0o755))
	const callers, boxes = 8, 256
	all := func(do func(i int)) time.Duration {
		began := time.Now()
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				for i := c; i < boxes; i += callers {
					do(i)
				}
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	var cloning, attaching, closing time.Duration
	for b.Loop() {
		var pool [boxes]vmpool.Sandbox
		cloning += all(func(i int) {
			s, err := tpl.Clone(context.Background())
			if err != nil {
				b.Error(err)
			}
			pool[i] = s
		})
		attaching += all(func(i int) {
			if err := pool[i].Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}); err != nil {
				b.Error(err)
			}
		})
		closing += all(func(i int) {
			if err := pool[i].Close(); err != nil {
				b.Error(err)
			}
		})
	}
	n := float64(b.N * boxes)
	b.ReportMetric(n/cloning.Seconds(), "clones/s")
	b.ReportMetric(n/attaching.Seconds(), "attaches/s")
	b.ReportMetric(n/closing.Seconds(), "closes/s")
}

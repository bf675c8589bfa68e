package load

import (
	"math"
	"slices"
	"testing"
	"time"
)

func all(l Load) (calls []Call) {
	for c, more := l.Next(); more; c, more = l.Next() {
		calls = append(calls, c)
	}
	return calls
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s: %.4g, want %.4g ± %.2g", what, got, want, tolerance)
	}
}

// The quantiles that the paper prints, from the fits that the paper prints.
func TestAzureHasThePublishedShape(t *testing.T) {
	const n = 100_000
	var total, popular float64
	hourly, minutely, below, wide := 0.0, 0.0, 0.0, 0.0
	for i := range n {
		r := AzureRate((float64(i) + 0.5) / n)
		total += r
		switch {
		case r > 1440:
			popular += r
			minutely++
		case r <= 24:
			hourly++
		}
		if m := AzureMemory((float64(i) + 0.5) / n); m <= 170 {
			below++
		} else if m > 400 {
			wide++
		}
	}
	near(t, "share called at most once an hour", hourly/n, 0.45, 0.01)
	near(t, "share called at most once a minute", 1-minutely/n, 0.81, 0.01)
	near(t, "share of calls of the others", popular/total, 0.996, 0.004)
	near(t, "orders of magnitude", math.Log10(AzureRate(1)/AzureRate(0)), 8, 0.01)
	near(t, "median memory, MiB", AzureMemory(0.5), 140, 10)
	if below/n < 0.5 || wide/n > 0.1 {
		t.Errorf("memory: %.2f up to 170 MiB, want at least half; %.2f above 400 MiB, want at most a tenth", below/n, wide/n)
	}
	near(t, "median of the average run times, s", AzureExec(0).Seconds(), 0.684, 0.01)
	if at96 := AzureExec(1.75).Seconds(); at96 > 60 { // 96 % of functions run 60 s at most on average
		t.Errorf("96 %% of the averages are up to %.1f s, want at most 60", at96)
	}
}

// A sample of the load itself, not of the fits: shares of triggers by how regular the calls are, run times, order.
func TestAzureSample(t *testing.T) {
	cfg := DefaultAzure()
	cfg.Functions, cfg.RateMax, cfg.Length = 1500, 2000, 24*time.Hour
	l := Azure(cfg, 7)
	times := make([][]time.Duration, cfg.Functions)
	execs := make([]time.Duration, cfg.Functions)
	last := time.Duration(0)
	for c, more := l.Next(); more; c, more = l.Next() {
		if c.At < last {
			t.Fatalf("time falls from %s to %s", last, c.At)
		}
		last = c.At
		times[c.Function] = append(times[c.Function], c.At)
		execs[c.Function] += c.Exec
	}
	timers, clustered, seen, short, called := 0.0, 0.0, 0.0, 0.0, 0.0
	for f, ts := range times {
		if len(ts) > 0 {
			called++
		}
		if len(ts) > 0 && execs[f] < time.Duration(len(ts))*time.Second {
			short++
		}
		if len(ts) < 10 {
			continue
		}
		seen++
		switch cv := variation(ts); {
		case cv < 0.001:
			timers++
		case cv > 1.2:
			clustered++
		}
	}
	near(t, "share of functions called by timers", timers/seen, 0.156, 0.04)
	near(t, "share of clustered functions", clustered/seen, 0.5, 0.12) // the paper: CV above 1 for about 40 % of applications
	near(t, "share of functions with an average below 1 s", short/called, 0.55, 0.06)
	perAccount := map[string]int{}
	for _, f := range l.Functions() {
		perAccount[f.Account]++
	}
	if first, tenth := perAccount["tenant-0"], perAccount["tenant-9"]; first < 5*tenth {
		t.Errorf("the first tenant has %d functions, the tenth %d: want about ten times as many", first, tenth)
	}
}

// variation is the standard deviation of the gaps over their average.
func variation(ts []time.Duration) float64 {
	var sum, squares float64
	for i := 1; i < len(ts); i++ {
		g := (ts[i] - ts[i-1]).Seconds()
		sum += g
		squares += g * g
	}
	n := float64(len(ts) - 1)
	mean := sum / n
	return math.Sqrt(max(squares/n-mean*mean, 0)) / mean
}

func TestSeedDecides(t *testing.T) {
	cfg := DefaultAzure()
	cfg.Functions, cfg.RateMax = 50, 500
	one, same, other := all(Azure(cfg, 1)), all(Azure(cfg, 1)), all(Azure(cfg, 2))
	if !slices.Equal(one, same) {
		t.Error("one seed gave two loads")
	}
	if slices.Equal(one, other) {
		t.Error("two seeds gave one load")
	}
}

func TestRatesHold(t *testing.T) {
	base := Source{Rate: 0.5, Burst: 10, Gap: 100 * time.Millisecond, Exec: time.Second, Day: 0.5}
	for _, shape := range []Shape{Periodic, Poisson, Bursty} {
		s := base
		s.Shape = shape
		calls := all(Generate([]Source{s}, 3, 48*time.Hour))
		near(t, "calls a second", float64(len(calls))/(48*3600), 0.5, 0.03)
		night := 0.0
		for _, c := range calls {
			if h := int(c.At.Hours()) % 24; h < 6 {
				night++
			}
		}
		want := 0.25
		if shape != Periodic { // 1/4 - 0.5 sin(π/4)/π: the integral of Day around its lowest quarter
			want = 0.137
		}
		near(t, "share of calls by night", night/float64(len(calls)), want, 0.02)
	}
}

func TestBurstMergeSpeed(t *testing.T) {
	b := Burst(Function{Name: "b"}, time.Minute, 1000, 100*time.Millisecond, 50*time.Millisecond)
	p := Generate([]Source{{Function: Function{Name: "p"}, Shape: Periodic, Rate: 1, Exec: time.Second}}, 1, 2*time.Minute)
	m := Merge(p, Speed(b, 2))
	if fs := m.Functions(); len(fs) != 2 || fs[1].Name != "b" {
		t.Fatalf("functions %v", fs)
	}
	calls := all(m)
	if len(calls) != 120+1000 || !slices.IsSortedFunc(calls, func(a, b Call) int { return int(a.At - b.At) }) {
		t.Fatalf("%d calls, in order or not", len(calls))
	}
	var first, last time.Duration
	for _, c := range calls {
		if c.Function == 1 {
			if first == 0 {
				first = c.At
			}
			last = c.At
		}
	}
	if first != 30*time.Second || last-first < 49*time.Millisecond || last-first > 50*time.Millisecond {
		t.Errorf("the burst at twice the speed lasts from %s to %s", first, last)
	}
}

func BenchmarkGenerate(b *testing.B) {
	cfg := DefaultAzure()
	cfg.Length = forever / 2
	l := Azure(cfg, 1)
	b.ReportAllocs()
	for b.Loop() {
		l.Next()
	}
}

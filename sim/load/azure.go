package load

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"time"
)

// AzureConfig is the size of an Azure-like load.
type AzureConfig struct {
	Functions int           // at least 1
	Accounts  int           // tenants, at least 1; the functions are spread over them by Zipf's law
	Zipf      float64       // exponent of that law; 1 makes the n-th tenant 1/n as large as the first
	RateMax   float64       // calls a day of the busiest function; cuts the published tail, which ends at 1e8
	ExecMax   time.Duration // longest run of a call
	BusyMax   float64       // calls in flight of one function on average; a longer one is called less often
	Swing     float64       // how far rates swing over the day, in [0, 1)
	Start     time.Duration // until an instance exists
	Init      time.Duration // median over functions of the code's own initialisation
	Length    time.Duration // of the load
}

// DefaultAzure is a day of 2,000 functions, cut so that one core replays it in seconds.
//
// Start and Init are assumptions, not published with the trace: a prepared sandbox, and what common runtimes and
// their libraries take to load.
func DefaultAzure() AzureConfig {
	return AzureConfig{Functions: 2000, Accounts: 500, Zipf: 1, RateMax: 1e5, ExecMax: 5 * time.Minute, BusyMax: 50, Swing: 0.5,
		Start: 50 * time.Millisecond, Init: 400 * time.Millisecond, Length: 24 * time.Hour}
}

// Azure returns a load of the shape that Shahrad et al. found in all of Azure Functions in July 2019 ("Serverless in
// the Wild", USENIX ATC 2020; section 3). What of it is published is in AzureRate, AzureExec, AzureMemory and
// azureTriggers. Not published, and assumed here: that the four are independent of each other, that the run times
// of one function are log-normal around its own average with sigma 0.6, and how calls of queues and people cluster.
func Azure(cfg AzureConfig, seed uint64) Load {
	var pcg rand.PCG
	pcg.Seed(seed, 0xa2)
	d := newDraw().from(&pcg)
	tenants := zipf(cfg.Accounts, cfg.Zipf)
	sources := make([]Source, cfg.Functions)
	for i := range sources {
		account := sort.SearchFloat64s(tenants, d.Float64())
		memory := int(min(max(AzureMemory(d.Float64()), 128), 10240))
		s := Source{Function: Function{Account: fmt.Sprintf("tenant-%d", account), Name: fmt.Sprintf("fn-%d", i), MemoryMiB: memory, Slots: 1,
			Start: cfg.Start, Init: min(d.lognormal(cfg.Init, 0.8), 10*time.Second)}, Sigma: 0.6, Max: cfg.ExecMax}
		average := min(AzureExec(d.NormFloat64()), cfg.ExecMax)
		s.Exec = time.Duration(float64(average) / math.Exp(s.Sigma*s.Sigma/2)) // the median of a log-normal from its mean
		s.Rate = min(AzureRate(d.Float64()), cfg.RateMax, cfg.BusyMax/average.Seconds()*86400) / 86400
		azureTrigger(&s, cfg.Swing, d)
		sources[i] = s
	}
	return Generate(sources, seed, cfg.Length)
}

// AzureRate returns the calls a day of a function by its rank in [0, 1], rarest first. Published (figure 5): eight
// orders of magnitude lie between the rarest and the busiest; 45 % of applications are called at most once an hour on
// average, 81 % at most once a minute. The bend at 99 % is ours: it gives the 19 % that are called more than once a
// minute their published share of 99.6 % of all calls.
func AzureRate(rank float64) float64 {
	return math.Pow(10, curve{{0, 0}, {0.45, math.Log10(24)}, {0.81, math.Log10(1440)}, {0.99, math.Log10(2e5)}, {1, 8}}.at(rank))
}

// AzureExec returns the average run time of a function by a standard normal number: the log-normal distribution with
// log mean -0.38 and sigma 2.36 that the paper fits (figure 7), of seconds. Half of them are below 0.7 s.
func AzureExec(normal float64) time.Duration { return seconds(math.Exp(-0.38 + 2.36*normal)) }

// AzureMemory returns the MiB an application uses on average by its rank in [0, 1): the Burr distribution with
// c = 11.652, k = 0.221 and scale 107.083 that the paper fits (figure 8).
func AzureMemory(rank float64) float64 {
	return 107.083 * math.Pow(math.Pow(1-rank, -1/0.221)-1, 1/11.652)
}

// azureTriggers are the shares of functions by what calls them (figure 2), and how such calls come here.
var azureTriggers = []struct {
	share float64
	shape Shape
	burst int32
	gap   time.Duration
	day   bool
}{
	{0.156, Periodic, 1, 0, false},                    // timers
	{0.275, Poisson, 1, 0, true},                      // HTTP, half: many independent callers
	{0.275, Bursty, 8, 20 * time.Second, true},        // HTTP, half: few callers, in sessions
	{0.152, Bursty, 10, 200 * time.Millisecond, true}, // queues, delivered in batches
	{0.050, Bursty, 4, 500 * time.Millisecond, true},  // events and storage: one change brings several
	{0.069, Bursty, 5, time.Second, false},            // orchestrations: a step calls the next
	{0.023, Poisson, 1, 0, false},                     // others
}

// timerPeriods are what people write into timers; the one nearest to the drawn rate is taken.
var timerPeriods = []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour}

func azureTrigger(s *Source, swing float64, d *draw) {
	u := d.Float64()
	k := 0
	for k < len(azureTriggers)-1 && u >= azureTriggers[k].share {
		u -= azureTriggers[k].share
		k++
	}
	t := azureTriggers[k]
	s.Shape, s.Burst, s.Gap = t.shape, t.burst, t.gap
	if t.day {
		s.Day = float32(swing)
	}
	if s.Shape != Periodic {
		return
	}
	best := timerPeriods[0]
	for _, p := range timerPeriods {
		if math.Abs(math.Log(p.Seconds()*s.Rate)) < math.Abs(math.Log(best.Seconds()*s.Rate)) {
			best = p
		}
	}
	s.Rate = 1 / best.Seconds()
	s.First = time.Duration(d.Float64() * float64(best))
}

// zipf returns the cumulative shares of n ranks whose sizes fall as 1/rank^exponent.
func zipf(n int, exponent float64) []float64 {
	shares := make([]float64, n)
	sum := 0.0
	for i := range shares {
		sum += math.Pow(float64(i+1), -exponent)
		shares[i] = sum
	}
	for i := range shares {
		shares[i] /= sum
	}
	shares[n-1] = 1
	return shares
}

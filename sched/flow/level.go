package flow

import (
	"math"
	"slices"
	"time"
)

// LookTime is how often a host has its Level look.
const LookTime = 20 * time.Millisecond

// How a Level follows the crowd.
const (
	crowded   = 1.25                   // threads that want to run for each processor: more is a queue, less leaves processors idle
	newest    = 0.3                    // weight of the newest look in the crowd: the mean of about the last 60 ms
	lately    = 0.05                   // weight of the newest look in what an account wants: about the last 400 ms
	surge     = 0.5                    // of what an account wants by newest counts at once: one that jumps to many times the level is not waited for
	cutMost   = 0.7                    // of the level is left by one look
	raise     = 1.05                   // of the level when there is room: twice as much in 300 ms
	levelMin  = 0.25                   // processors, from which the level rises again
	freeWants = 1                      // processors that an account may want whatever the level is
	rest      = time.Second / LookTime // looks without anybody above the level before it is gone
	present   = 1e-3                   // processors: who wanted less lately does not count among the accounts
	restTimes = 7                      // times what a start took its account waits before the next on a crowded host: starts get an eighth of its time
	restMost  = 2 * time.Second        // of that
)

// NoBound is the Bound of who may run as many calls as come.
const NoBound = math.MaxInt64

// A Tenant is one account on a host. Its owner sets Running, Refused, Part and Beside before each Look; the Level sets Bound.
type Tenant struct {
	Running int     // calls at work
	Refused int     // calls that its bound refused since the last Look
	Part    float64 // of a processor that one of its calls got while it was at work lately, in (0, 1]
	Beside  bool    // another account's calls pass the machine, wherever they run
	Bound   int64   // calls at work at once, at least 1; NoBound for most

	slow, fast float64 // processors that it wanted, by two memories
	wants      float64
}

// A Level divides the processors of a crowded host among accounts: calls of one account run up to so many processors'
// worth and no further, the same for all, which is the max-min fair division of what runs. It bounds what runs and not
// what comes in a second: that holds from the first call on, because nobody must know how long calls take or how many the
// host can do, and what is too much does not begin. The level follows how many threads want to run, so that processors
// are neither idle nor queued for. Nobody is bounded who wants no more than a few times what the median account wants, or
// one processor. The zero value bounds nobody. It is pure and has one caller.
type Level struct {
	crowd float64 // threads that want to run for each processor, lately
	level float64 // processors that one account may want; 0 while nobody is bounded
	calm  int     // looks in a row without anybody above the level
	wants []float64
}

// Crowd returns how many threads wanted to run for each processor lately.
func (l *Level) Crowd() float64 { return l.crowd }

// Crowded reports whether processors were queued for lately.
func (l *Level) Crowded() bool { return l.crowd > crowded }

// Starts returns how many instances t may start at once on a machine of so many processors: half of them, at least 1,
// where another account called lately or calls pass to other hosts, and as many as come where none did. A start computes from its first to its last
// moment, so it takes a processor from those who call; that is known before the crowd that it makes is seen.
func (l *Level) Starts(t *Tenant, processors int) int64 {
	others := len(l.wants)
	if t.wants > present {
		others--
	}
	if others > 0 || t.Beside {
		return int64(max(processors/2, 1))
	}
	return NoBound
}

// Rest returns how long t is to wait before its next start after one that took so long and used a warm sandbox that takes so
// much of a processor to make again. It is nothing where nobody else called lately; else as long as the sandbox, because starts
// are what a crowd comes from before it is seen; and where processors are queued for, several times the longer of both:
// in turn and one right after the other, starts still compute all the time, and what they are wanted for then is mostly the
// queue that they make.
func (l *Level) Rest(t *Tenant, took, sandbox time.Duration) time.Duration {
	switch {
	case l.Starts(t, 0) == NoBound:
		return 0
	case l.Crowded():
		return min(restTimes*max(took, sandbox), restMost)
	}
	return min(sandbox, restMost)
}

// Height returns how many processors one account may want; 0 while nobody is bounded.
func (l *Level) Height() float64 { return l.level }

// Look takes how many threads want to run for each processor at this instant, and sets the bounds of all accounts on the
// host. Call it every LookTime.
func (l *Level) Look(crowd float64, ts []*Tenant) {
	l.crowd += newest * (crowd - l.crowd)
	most, runs := l.measure(ts)
	if l.level > 0 || l.crowd > crowded {
		l.move(most, runs)
	}
	spared := max(l.level, loud*l.median(), freeWants)
	if l.calm++; most > spared {
		l.calm = 0
	}
	if l.calm > int(rest) {
		l.level, l.calm = 0, 0
	}
	for _, t := range ts {
		if t.Bound = NoBound; l.level > 0 && t.wants > spared {
			t.Bound = max(int64(l.level/l.part(t)+0.5), 1)
		}
	}
}

// move follows the crowd with the level: most is what an account wants at most, runs what one has running at most.
func (l *Level) move(most, runs float64) {
	switch over := crowded / l.crowd; {
	case l.level == 0:
		l.level = most * over
	case over < 1 && runs > l.level+1: // what began before the last cut has not ended yet
	case over < 1:
		l.level *= max(over, cutMost)
	default:
		l.level = min(raise*l.level, 2*most)
	}
	l.level = max(l.level, levelMin)
}

// part returns how much of a processor a call of t wants while it is at work: a thread that shares its processor with
// others gets the less, the more there are.
func (l *Level) part(t *Tenant) float64 { return min(t.Part*max(l.crowd, 1), 1) }

// measure returns the most that an account wants lately, and the most that one has running.
func (l *Level) measure(ts []*Tenant) (most, runs float64) {
	l.wants = l.wants[:0]
	for _, t := range ts {
		want := l.part(t) * float64(t.Running+t.Refused)
		t.slow += lately * (want - t.slow)
		t.fast += newest * (want - t.fast)
		if t.wants = max(t.slow, surge*t.fast); t.wants > present {
			l.wants = append(l.wants, t.wants)
		}
		most, runs = max(most, t.wants), max(runs, l.part(t)*float64(t.Running))
	}
	return most, runs
}

// median returns what the median account wants.
func (l *Level) median() float64 {
	if len(l.wants) == 0 {
		return 0
	}
	slices.Sort(l.wants)
	return l.wants[(len(l.wants)-1)/2]
}

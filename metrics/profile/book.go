package profile

import (
	"cmp"
	"container/list"
	"slices"
	"sync"
	"time"

	"starling"
)

// A Profile is what the calls of one version used, on one host or, merged, on several.
type Profile struct {
	Function      starling.FunctionRef   `json:"function"`
	Version       starling.VersionID     `json:"version"`
	Number        starling.VersionNumber `json:"number"`
	MemoryMiB     int                    `json:"memoryMiB"`
	TimeoutMS     int                    `json:"timeoutMS"`
	First         time.Time              `json:"first"` // of the beats that brought calls
	Last          time.Time              `json:"last"`
	Calls         uint64                 `json:"calls"`
	OutOfMemory   uint64                 `json:"outOfMemory"`
	RunSeconds    float64                `json:"runSeconds"`    // sum over calls
	ActiveSeconds float64                `json:"activeSeconds"` // sum over instances of beats with calls
	CPUSeconds    float64                `json:"cpuSeconds"`    // sum over cpuCalls
	CPUCalls      uint64                 `json:"cpuCalls"`      // calls whose CPU was measured
	MemoryMax     int64                  `json:"memoryMax"`     // bytes, highest peak of an instance
	Runs          Sketch                 `json:"runs"`          // seconds of a call
	Peaks         Sketch                 `json:"peaks"`         // bytes: the peak of its instance, for each call
}

func (p *Profile) add(t *Tally, now time.Time) {
	p.Calls += t.Calls
	p.OutOfMemory += t.OutOfMemory
	p.RunSeconds += t.Run.Seconds()
	p.ActiveSeconds += t.Active.Seconds()
	p.CPUSeconds += t.CPU.Seconds()
	p.CPUCalls += t.CPUCalls
	p.MemoryMax = max(p.MemoryMax, t.MemoryMax)
	p.Last = now
	p.Peaks.Add(float64(t.MemoryMax), float64(t.Calls))
	runs, weight := t.sample()
	for _, us := range runs {
		p.Runs.Add(float64(max(us, 1))/1e6, weight)
	}
}

// Merge adds what another host saw of the same version; other stays as it is.
func (p *Profile) Merge(other *Profile) {
	p.Calls += other.Calls
	p.OutOfMemory += other.OutOfMemory
	p.RunSeconds += other.RunSeconds
	p.ActiveSeconds += other.ActiveSeconds
	p.CPUSeconds += other.CPUSeconds
	p.CPUCalls += other.CPUCalls
	p.MemoryMax = max(p.MemoryMax, other.MemoryMax)
	if other.First.Before(p.First) {
		p.First = other.First
	}
	if other.Last.After(p.Last) {
		p.Last = other.Last
	}
	p.Runs.Merge(&other.Runs)
	p.Peaks.Merge(&other.Peaks)
}

func (p *Profile) clone() Profile {
	out := *p
	out.Runs, out.Peaks = Sketch{}, Sketch{}
	out.Runs.Merge(&p.Runs)
	out.Peaks.Merge(&p.Peaks)
	return out
}

// VersionsMax is how many profiles a book keeps unless told otherwise: at most 10 MiB.
const VersionsMax = 1024

// A Book is the profiles of one host. At most so many versions: the one that was called least lately makes room. Safe for
// concurrent use.
type Book struct {
	mu      sync.Mutex // guards what follows; a leaf
	most    int
	byID    map[starling.VersionID]*list.Element
	order   *list.List // of *Profile, called most lately first
	dropped uint64
}

// NewBook returns an empty book for so many versions, 1 or more.
func NewBook(most int) *Book {
	return &Book{most: max(most, 1), byID: map[starling.VersionID]*list.Element{}, order: list.New()}
}

// Add counts what an instance of v did until now.
func (b *Book) Add(v *starling.Version, t *Tally, now time.Time) {
	if t.Calls == 0 && t.CPUCalls == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e, known := b.byID[v.ID]
	if !known {
		if len(b.byID) >= b.most {
			last := b.order.Back()
			delete(b.byID, last.Value.(*Profile).Version)
			b.order.Remove(last)
			b.dropped++
		}
		e = b.order.PushFront(&Profile{Function: v.Function, Version: v.ID, Number: v.Number, MemoryMiB: v.Config.MemoryMiB,
			TimeoutMS: v.Config.TimeoutMS, First: now})
		b.byID[v.ID] = e
	}
	b.order.MoveToFront(e)
	e.Value.(*Profile).add(t, now)
}

// Profiles returns copies of the profiles of one function, or of all for an empty name, in order of function and version.
func (b *Book) Profiles(name starling.FunctionName) []Profile {
	b.mu.Lock()
	out := []Profile{}
	for e := b.order.Front(); e != nil; e = e.Next() {
		if p := e.Value.(*Profile); name == "" || p.Function.Name == name {
			out = append(out, p.clone())
		}
	}
	b.mu.Unlock()
	Sort(out)
	return out
}

// MeanRun returns how long a call of the version ran on average; 0 when that is not known.
func (b *Book) MeanRun(v starling.VersionID) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.byID[v]
	if e == nil || e.Value.(*Profile).Calls == 0 {
		return 0
	}
	p := e.Value.(*Profile)
	return time.Duration(p.RunSeconds / float64(p.Calls) * float64(time.Second))
}

// Size returns the versions in the book and how many had to make room so far.
func (b *Book) Size() (versions int, dropped uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.byID), b.dropped
}

// Merge joins the profiles of several hosts, one for each version, in order of function and version.
func Merge(lists ...[]Profile) []Profile {
	at := map[starling.VersionID]int{}
	out := []Profile{}
	for _, l := range lists {
		for i := range l {
			p := &l[i]
			if n, known := at[p.Version]; known {
				out[n].Merge(p)
				continue
			}
			at[p.Version] = len(out)
			out = append(out, p.clone())
		}
	}
	Sort(out)
	return out
}

// Sort orders profiles by function, the newest version first.
func Sort(list []Profile) {
	slices.SortFunc(list, func(a, b Profile) int {
		return cmp.Or(cmp.Compare(a.Function.Account, b.Function.Account), cmp.Compare(a.Function.Name, b.Function.Name), cmp.Compare(b.Version, a.Version))
	})
}

package sched

import "testing"

// A damage makes one sum wrong, where there is one to damage, and returns how to mend it.
type damage struct {
	name string
	do   func(s *Scheduler) (mend func())
}

// add damages a number.
func add[N int | int32](n *N) func() {
	*n++
	return func() { *n-- }
}

// damages has one entry for each sum that Check takes anew.
func damages() []damage {
	ofVersion := func(f func(v *version) func()) func(s *Scheduler) func() {
		return func(s *Scheduler) func() {
			for _, v := range s.inOrder() {
				if v.of != nil && v.all.n > 0 && len(v.holders) > 0 {
					return f(v)
				}
			}
			return nil
		}
	}
	inst := func(f func(i *instance) func()) func(s *Scheduler) func() {
		return ofVersion(func(v *version) func() { return f(v.all.front) })
	}
	return []damage{
		{"leased slots", func(s *Scheduler) func() { return add(&s.leased) }},
		{"wanted instances", func(s *Scheduler) func() { return add(&s.wanted) }},
		{"gates", func(s *Scheduler) func() { return add(&s.gates) }},
		{"slots of a version", ofVersion(func(v *version) func() { return add(&v.leased) })},
		{"calls that wait for a version", ofVersion(func(v *version) func() { return add(&v.waiting) })},
		{"ready instances of a version", ofVersion(func(v *version) func() { return add(&v.ready) })},
		{"starting instances of a version", ofVersion(func(v *version) func() { return add(&v.starting) })},
		{"slots of a frontend", ofVersion(func(v *version) func() { return add(&v.holders[0].held) })},
		{"calls of a frontend", ofVersion(func(v *version) func() { return add(&v.holders[0].waiting) })},
		{"calls that wait for a function", ofVersion(func(v *version) func() { return add(&v.of.waiting) })},
		{"instances of a function", ofVersion(func(v *version) func() { return add(&v.of.instances) })},
		{"starting instances of a function", ofVersion(func(v *version) func() { return add(&v.of.starting) })},
		{"slots of an account", ofVersion(func(v *version) func() { return add(&v.account.leased) })},
		{"slots that start for an account", ofVersion(func(v *version) func() { return add(&v.account.starting) })},
		{"slots of an instance", inst(func(i *instance) func() { return add(&i.used) })},
		{"ready instances of a host", inst(func(i *instance) func() { return add(&i.host.ready) })},
		{"starting instances of a host", inst(func(i *instance) func() { return add(&i.host.starting) })},
		{"whether an instance is free", inst(func(i *instance) func() {
			i.isFree = !i.isFree
			return func() { i.isFree = !i.isFree }
		})},
		{"the order of ends", func(s *Scheduler) func() {
			l := s.expiry.front
			if l == nil {
				return nil
			}
			ends := l.ends
			l.ends = never
			if l.in[byExpiry].next == nil {
				l.ends = ends
				return nil
			}
			return func() { l.ends = ends }
		}},
		{"who looks after a purse", func(s *Scheduler) func() {
			for _, a := range s.permits.purses {
				if a.awake && !a.rests() {
					a.awake = false
					return func() { a.awake = true }
				}
			}
			return nil
		}},
	}
}

// TestCheckSeesEverySum damages one sum after the other in books that are right: Check must see each, and nothing when
// it is mended.
func TestCheckSeesEverySum(t *testing.T) {
	left := damages()
	for n := uint64(1); n <= 20 && len(left) > 0; n++ {
		w := newWorld(n)
		for range 60 {
			if err := w.someSteps(); err != nil {
				t.Fatal(err)
			}
			var kept []damage
			for _, d := range left {
				mend := d.do(w.s)
				if mend == nil {
					kept = append(kept, d)
					continue
				}
				if w.s.Check() == nil {
					t.Errorf("seed %d: %s are wrong and Check sees nothing", n, d.name)
				}
				mend()
				if err := w.s.Check(); err != nil {
					t.Fatalf("seed %d: %s are mended and Check says: %v", n, d.name, err)
				}
			}
			left = kept
		}
	}
	for _, d := range left {
		t.Errorf("no world had %s to damage", d.name)
	}
}

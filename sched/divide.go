package sched

import (
	"cmp"
	"slices"
	"time"

	"starling"
	"starling/sched/flow"
	"starling/sched/ledger"
)

// A spanRef names a function's span in a snapshot.
type spanRef struct {
	account starling.AccountID
	key     starling.Key64
}

// A division counts what the halves of a snapshot use. Half 0 is below the key, 1 from it on.
type division struct {
	from     *Snapshot
	at       starling.Key64
	half     [2]Snapshot
	of       map[starling.InstanceID]*InstanceState
	versions map[starling.VersionID]*VersionState
	has      [2]map[starling.VersionID]bool // instances or waiting calls of it
	leased   [2]map[spanRef]int
	accounts [2]map[starling.AccountID]*holding
	left     time.Duration // the longest of all leases
}

// A holding is what one half has of an account.
type holding struct{ leased, need int }

// Divide cuts the state at a key inside the range. Instances with their leases, and waiting calls, go where their key is, ledgers
// where their account's key is, permits with the leases that need them; of hosts and of functions whose span is cut both halves
// learn. Where a half begins with more leases of a function than its share of the limit, the other half leaves as much unused
// until they must have ended. The halves share memory with s: use them in its place.
func (s Snapshot) Divide(at starling.Key64) (low, high Snapshot) {
	d := division{from: &s, at: at, of: make(map[starling.InstanceID]*InstanceState, len(s.Instances)), versions: make(map[starling.VersionID]*VersionState, len(s.Versions))}
	for h := range d.half {
		d.half[h] = Snapshot{Partition: s.Partition, Epoch: s.Epoch, Range: s.Range, Seq: s.Seq, Generation: s.Generation, Number: s.Number, Hosts: s.Hosts}
		d.has[h], d.leased[h], d.accounts[h] = map[starling.VersionID]bool{}, map[spanRef]int{}, map[starling.AccountID]*holding{}
	}
	d.half[0].Range.Hi, d.half[1].Range.Lo = at, at
	for k := range s.Versions {
		d.versions[s.Versions[k].ID] = &s.Versions[k]
	}
	d.divideThings()
	for k := range s.Versions {
		d.divideVersion(&s.Versions[k])
	}
	d.settle()
	for _, r := range s.Remembered {
		for h, share := range d.shares(r.Key) {
			if share > 0 {
				part := r
				part.Learned = r.Learned.Part(share)
				d.half[h].Remembered = append(d.half[h].Remembered, part)
			}
		}
	}
	for _, a := range s.Accounts {
		d.dividePurse(a)
	}
	for _, b := range s.Books {
		h := d.side(ledger.KeyOf(b.Account))
		d.half[h].Books = append(d.half[h].Books, b)
	}
	return d.half[0], d.half[1]
}

func (d *division) side(k starling.Key64) int {
	if k < d.at {
		return 0
	}
	return 1
}

// divideThings divides what has a key.
func (d *division) divideThings() {
	for k := range d.from.Instances {
		i := &d.from.Instances[k]
		h := d.side(i.Key)
		d.of[i.ID] = i
		d.has[h][i.Version] = true
		d.half[h].Instances = append(d.half[h].Instances, *i)
		if i.Phase == Starting {
			d.use(h, i.Version, 0, 1)
		}
	}
	for _, l := range d.from.Leases {
		i := d.of[l.Instance]
		if i == nil {
			continue
		}
		h := d.side(i.Key)
		d.half[h].Leases = append(d.half[h].Leases, l)
		d.left = max(d.left, l.Left)
		d.use(h, i.Version, 1, 1)
	}
	for _, w := range d.from.Waiting {
		h := d.side(w.Key)
		d.half[h].Waiting = append(d.half[h].Waiting, w)
		d.has[h][w.Version] = true
		d.use(h, w.Version, 0, 1)
	}
}

// use counts slots of a version that a half has leased and needs.
func (d *division) use(h int, id starling.VersionID, leased, need int) {
	v := d.versions[id]
	if v == nil || v.Account == "" {
		return
	}
	d.leased[h][spanRef{v.Account, v.Key}] += leased
	a := d.accounts[h][v.Account]
	if a == nil {
		a = &holding{}
		d.accounts[h][v.Account] = a
	}
	a.leased += leased
	a.need += need
}

// shares returns which part of what we have of a span is in each half.
func (d *division) shares(span starling.Key64) [2]float64 {
	const fine = 1 << 30
	all := float64(flow.Share(fine, span, d.from.Range))
	low := float64(flow.Share(fine, span, d.half[0].Range))
	switch {
	case all > 0:
		return [2]float64{low / all, (all - low) / all}
	case d.side(span) == 0:
		return [2]float64{1, 0}
	}
	return [2]float64{0, 1}
}

func (d *division) divideVersion(v *VersionState) {
	share := d.shares(v.Key)
	if v.Account == "" { // nobody knows where its span is: it is where its calls are
		share = [2]float64{1, 0}
		if d.has[1][v.ID] {
			share = [2]float64{0, 1}
		}
	}
	for h := range d.half {
		if share[h] == 0 && !d.has[h][v.ID] {
			continue
		}
		part := *v
		if share[h] < 1 {
			part.Learned = v.Learned.Part(share[h])
			part.Want, part.Keep, part.Again = 0, 0, 0 // planned anew at once
			part.Ahead, part.Retries = v.Ahead/2, v.Retries/2
		}
		d.half[h].Versions = append(d.half[h].Versions, part)
		if v.Account != "" {
			d.use(h, v.ID, 0, 0)
		}
	}
}

// settle has a half leave unused what the other half has leased above its share of a limit of the function that is cut.
func (d *division) settle() {
	var over [2]int
	for k := range d.from.Versions {
		v := &d.from.Versions[k]
		if v.Account == "" || v.Key != spanOf(d.at) {
			continue
		}
		for h := range over {
			over[h] = max(over[h], d.leased[h][spanRef{v.Account, v.Key}]-flow.Share(v.Limit, v.Key, d.half[h].Range))
		}
	}
	for h := range d.half {
		half := &d.half[h]
		for _, e := range d.from.Settling {
			if d.shares(e.Key)[h] > 0 {
				half.Settling = append(half.Settling, e)
			}
		}
		if over[0]+over[1] > 0 {
			half.Settling = joinSettling(half.Settling, []SettleState{{Key: spanOf(d.at), Withheld: over[1-h], Left: d.left + strays}})
		}
	}
}

// dividePurse gives permits to the halves that serve the account.
func (d *division) dividePurse(a AccountState) {
	l, h := d.accounts[0][a.ID], d.accounts[1][a.ID]
	low, high := a, a
	switch {
	case h == nil:
		d.half[0].Accounts = append(d.half[0].Accounts, a)
		return
	case l == nil:
		d.half[1].Accounts = append(d.half[1].Accounts, a)
		return
	}
	low.Purse, high.Purse = a.Purse.Divide(l.leased, h.leased, l.need, h.need)
	d.half[0].Accounts = append(d.half[0].Accounts, low)
	d.half[1].Accounts = append(d.half[1].Accounts, high)
}

// Join brings the states of two neighbours together, low the one with the lower keys. The result has low's partition and the later
// epoch, and shares memory with both: use it in their place.
func Join(low, high Snapshot) Snapshot {
	out := Snapshot{Partition: low.Partition, Epoch: max(low.Epoch, high.Epoch), Range: starling.Range{Lo: low.Range.Lo, Hi: high.Range.Hi}, Seq: max(low.Seq, high.Seq),
		Generation: max(low.Generation, high.Generation), Number: max(low.Number, high.Number)}
	out.Hosts = join(low.Hosts, high.Hosts, func(h HostState) starling.NodeID { return h.Node }, joinHosts)
	out.Accounts = join(low.Accounts, high.Accounts, func(a AccountState) starling.AccountID { return a.ID }, joinAccounts)
	out.Books = join(low.Books, high.Books, func(b ledger.BookState) starling.AccountID { return b.Account }, func(a, _ ledger.BookState) ledger.BookState { return a })
	out.Versions = join(low.Versions, high.Versions, func(v VersionState) starling.VersionID { return v.ID }, joinVersions)
	out.Instances = slices.Concat(low.Instances, high.Instances)
	out.Leases = slices.SortedStableFunc(slices.Values(slices.Concat(low.Leases, high.Leases)), sooner)
	out.Waiting = slices.Concat(low.Waiting, high.Waiting)
	out.Settling = joinSettling(low.Settling, high.Settling)
	inUse := make(map[starling.VersionID]int, len(out.Versions))
	for k := range out.Versions {
		inUse[out.Versions[k].ID] = k
	}
	at := map[starling.VersionID]int{}
	for _, r := range slices.Concat(low.Remembered, high.Remembered) {
		if k, ok := inUse[r.ID]; ok {
			out.Versions[k].Learned = out.Versions[k].Learned.Join(r.Learned)
		} else if k, ok := at[r.ID]; ok {
			out.Remembered[k].Learned = out.Remembered[k].Learned.Join(r.Learned)
		} else {
			at[r.ID] = len(out.Remembered)
			out.Remembered = append(out.Remembered, r)
		}
	}
	return out
}

// join merges two lists that are in the order of their keys; both makes one of two with the same key.
func join[T any, K cmp.Ordered](a, b []T, key func(T) K, both func(a, b T) T) (out []T) {
	for len(a) > 0 && len(b) > 0 {
		switch c := cmp.Compare(key(a[0]), key(b[0])); {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, both(a[0], b[0])), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// joinSettling leaves unused what either says, which may be more than need be.
func joinSettling(a, b []SettleState) []SettleState {
	out := slices.Clone(a)
	for _, e := range b {
		if k := slices.IndexFunc(out, func(o SettleState) bool { return o.Key == e.Key }); k >= 0 {
			out[k].Withheld, out[k].Left = out[k].Withheld+e.Withheld, max(out[k].Left, e.Left)
		} else {
			out = append(out, e)
		}
	}
	return out
}

// joinHosts believes the less of two: the host's next report knows better.
func joinHosts(a, b HostState) HostState {
	if !a.Reported {
		a, b = b, a
	}
	if b.Reported {
		a.FreeMiB = min(a.FreeMiB, b.FreeMiB)
	}
	a.Fenced, a.Draining, a.Full = a.Fenced && b.Fenced, a.Draining || b.Draining, a.Full || b.Full
	a.Others, a.Avoid = max(a.Others, b.Others), max(a.Avoid, b.Avoid)
	return a
}

func joinAccounts(a, b AccountState) AccountState {
	return AccountState{ID: a.ID, Max: min(a.Max, b.Max), Purse: a.Purse.Join(b.Purse)}
}

// joinVersions makes one of the halves of a function that was cut.
func joinVersions(a, b VersionState) VersionState {
	if a.Account == "" {
		a, b = b, a
	}
	if b.Hold > a.Hold {
		a.Hold, a.Reason, a.Text = b.Hold, b.Reason, b.Text
	}
	a.Trouble = cmp.Or(a.Trouble, b.Trouble)
	a.Gone, a.Floored, a.Limit = a.Gone || b.Gone, a.Floored || b.Floored, max(a.Limit, b.Limit)
	a.Failures, a.Troubles, a.Dead = max(a.Failures, b.Failures), max(a.Troubles, b.Troubles), max(a.Dead, b.Dead)
	a.Retries, a.Ahead = min(a.Retries+b.Retries, retryMax), a.Ahead+b.Ahead
	a.Want, a.Keep, a.IdleKeep, a.Again = a.Want+b.Want, a.Keep+b.Keep, max(a.IdleKeep, b.IdleKeep), 0
	a.Learned = a.Learned.Join(b.Learned)
	return a
}

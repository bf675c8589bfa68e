package sched

import (
	"starling"
	"starling/sched/ledger"
)

// An account sums what its functions use in this partition.
type account struct {
	leased   int
	purse    ledger.Purse // its Permits bound leased
	max      int          // slots that may be leased at once in all partitions
	starting int          // slots on their way
	id       starling.AccountID
	versions int // that point here
	turn     int // whose waiting calls are served next when a slot of the account is free
	hungry   []*version

	functions []*function
	awake     bool     // in permits.asking
	memory    int      // MiB of the instances at hosts
	owes      *version // gets the memory of the account's next idle instance; nil for none
}

// A function sums what its versions use.
type function struct {
	account   *account
	leased    int // of several versions; a single one counts for itself, see inUse
	waiting   int
	instances int // starting or ready
	starting  int
	members   []*version
	ref       starling.FunctionRef
}

// inUse returns the slots leased of all versions. That of a single one is not summed: a warm call looks into one place
// less.
func (f *function) inUse() int {
	if len(f.members) == 1 {
		return int(f.members[0].leased)
	}
	return f.leased
}

// A holder is one frontend's share of one version.
type holder struct {
	node    starling.NodeID
	held    int32 // leases
	waiting int32
	queue   waiterList
}

// A version is one deployed snapshot: its instances and its queue. These are the two cache lines that a warm call
// touches, and nothing else: with a hundred thousand functions a call costs what it misses, and lines that lie close
// together take few pages.
type version struct {
	account *account     // of the function; nil until the lookup is answered
	slots   int32        // of one instance; 0 until known
	limit   int32        // slots that may be leased at once
	leased  int32        // slots
	waiting int32        // calls
	free    instanceList // ready with a free slot
	peak    int32        // most slots leased at once since the last plan
	alone   bool         // the only version of its function: its sums are the function's
	gone    bool         // deleted: nothing is granted, instances are on their way out
	untold  uint16       // arrivals until the governor is told: 1 while it rests
	holders []holder
	first   [1]holder // room for the first of holders
	id      starling.VersionID
	*versionRest
}

// A versionRest is what only plans, starts and queues look at.
type versionRest struct {
	scaling
	of       *function         // nil until the lookup is answered
	turn     int32             // holder served next
	config   *starling.Version // nil until the lookup is answered
	most     int               // instances of the function that this version may ask for
	all      instanceList      // not stopping
	starting int
	ready    int
	leaving  int                     // stopping
	onHost   map[starling.NodeID]int // instances of all
	onZone   map[starling.Zone]int
	homes    homes

	failures   int     // starts that failed in a row by the function's own fault
	troubles   int     // starts that failed in a row by a host's fault
	deaths     int     // instances that died young in a row
	hold       instant // no start before this
	holdReason string  // why
	holdText   string
	trouble    string // why the last start failed by a host's fault

	evicting   int // instances of others on their way out for this one
	recalledAt instant
	claimedAt  instant // last look for memory of others
	lookedAt   instant // for instances of other versions that could make way
	lookupAt   instant
	emptyAt    instant
	listed     bool // in Scheduler.empty
	hungryAt   int  // in Scheduler.hungry; -1 when nobody waits
	accountAt  int  // in account.hungry; -1 when not there
	share      int  // slots that renewed leases may make up while a cut span settles
}

type state uint8

const (
	isStarting state = iota
	isReady
	isStopping // told to stop; nothing is leased of it any more, its memory is not free yet
	isLost     // its host seems dead; in the books only as long as slots of it are leased
)

// An instance is one running copy of a version, as far as this partition knows. What a warm call touches comes first,
// and little else is here: see version.
type instance struct {
	id      starling.InstanceID
	version *version
	node    starling.NodeID // its host
	used    int32           // slots leased
	state   state
	isFree  bool          // in version.free
	moved   bool          // its replacement is ready: it takes no further call
	leases  leaseList     // that make up used
	idle    instant       // since when no slot was leased; meaningful while used is 0
	free    instanceLinks // in version.free
	*instanceRest
	host *host
	due  instant // see before
	key  starling.Key64
}

// An instanceRest is what only starts, stops and plans look at.
type instanceRest struct {
	in       [coldListCount]instanceLinks
	began    instant   // decision to start it
	sent     instant   // last Start or Stop sent
	look     instant   // when a starting one is looked at again
	readyAt  instant   // first known to be ready
	heapAt   int       // in Scheduler.idle; -1 when not there
	forWhom  *version  // evicted for this one
	replaces *instance // that it is to relieve when it is ready
	moving   bool      // its replacement is on its way, or ready
	seen     bool      // named by the report being read
	memory   int       // MiB; 0 until the version is known
}

// A lease is one slot of one instance in the hands of one frontend.
type lease struct {
	id       starling.LeaseID // generation in the upper half, slot in the lower; 0 while spare
	slot     uint32
	gen      uint32
	node     starling.NodeID // 0 for an adopted one whose frontend did not speak yet
	instance *instance
	ends     instant
	in       [leaseListCount]leaseLinks
	recalled bool
	key      *leaseKey // of an adopted one; nil for one of our own
}

// A leaseKey names a lease in the cluster: by the life that granted it, and its number there.
type leaseKey struct {
	partition starling.PartitionID
	epoch     starling.Epoch
	id        starling.LeaseID
}

// A callKey names a waiting call.
type callKey struct {
	node starling.NodeID
	call uint64
}

// A host is what is known of one host.
type host struct {
	node     starling.NodeID
	zone     starling.Zone
	fenced   bool    // obeys our epoch; only then instances are started there
	gate     bool    // activation waits for it, or it is to hear of the epoch of a restored scheduler
	asked    instant // last Fence sent
	reported bool
	free     int // MiB, less what was started since the report
	total    int
	cpu      int
	others   int // starts in flight there, of all partitions, as reported
	draining bool
	full     bool    // said so since the last report
	avoid    instant // not used before this
	starting int
	ready    int
	strange  bool // had instances of our keys, at its last answer, that are not in the books: their Stop may be lost
	all      instanceList
	gives    starling.Isolations
	pools    []stock
	code     []starling.VersionID // unpacked there
}

func (s *Scheduler) addHost(node starling.NodeID) *host {
	h := s.hosts[node]
	if h == nil {
		h = &host{node: node, all: instanceList{which: byHost}, asked: s.now - s.cfg.FenceAgain} // not asked yet: the first report asks
		s.hosts[node] = h
		at := 0
		for at < len(s.order) && s.order[at].node < node {
			at++
		}
		s.order = append(s.order, nil)
		copy(s.order[at+1:], s.order[at:])
		s.order[at] = h
	}
	return h
}

func (s *Scheduler) addVersion(id starling.VersionID) *version {
	v := s.versions.find(id)
	if v == nil {
		v = s.newVersion(id)
		s.unknown = append(s.unknown, v)
		s.lookup(v)
	}
	return v
}

// newVersion books a version that nobody has asked for yet.
func (s *Scheduler) newVersion(id starling.VersionID) *version {
	v := &version{id: id, free: instanceList{which: byFree}, versionRest: &versionRest{all: instanceList{which: byVersion}, hungryAt: -1,
		accountAt: -1, recalledAt: -s.cfg.RecallPause, lookedAt: -s.cfg.RecallPause, claimedAt: -s.cfg.RecallPause}}
	v.holders = v.first[:0]
	v.slot, v.untold, v.given, v.retries = -1, tellMax, tellMax, retryMax
	s.versions.add(v)
	return v
}

func (s *Scheduler) lookup(v *version) {
	v.lookupAt = s.now
	s.out.effects = append(s.out.effects, Effect{Version: v.id})
}

// holderOf returns the entry of a frontend; create it when it has none.
func (v *version) holderOf(node starling.NodeID, create bool) *holder {
	for i := range v.holders {
		if v.holders[i].node == node {
			return &v.holders[i]
		}
	}
	if !create {
		return nil
	}
	v.holders = append(v.holders, holder{node: node})
	return &v.holders[len(v.holders)-1]
}

// drop forgets a frontend that neither holds nor waits.
func (v *version) drop(h *holder) {
	if h.held == 0 && h.waiting == 0 && len(v.holders) > 1 {
		*h = v.holders[len(v.holders)-1]
		v.holders = v.holders[:len(v.holders)-1]
	}
}

// known reports whether calls of v can be served.
func (v *version) known() bool { return v.account != nil && !v.gone }

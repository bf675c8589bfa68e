// Package wire holds the messages between frontends, partitions and hosts, and their codec. It is pure.
//
// Messages and their numbers are only ever added to. Durations cross the wire in microseconds; a deadline
// crosses as the time that remains. The path of a call touches Acquire, Grant, Renew and Release only.
package wire

import (
	"time"

	"starling"
)

// A Kind is the number of a message on the wire.
type Kind uint8

const (
	KindAcquire     Kind = 1
	KindCancel      Kind = 2
	KindRelease     Kind = 3
	KindRenew       Kind = 4
	KindAtWork      Kind = 5
	KindGrant       Kind = 10
	KindReject      Kind = 11
	KindRecall      Kind = 12
	KindRenewed     Kind = 13
	KindCensus      Kind = 14
	KindStart       Kind = 20
	KindStop        Kind = 21
	KindFence       Kind = 22
	KindStarted     Kind = 30
	KindStartFailed Kind = 31
	KindExited      Kind = 32
	KindFenced      Kind = 33
	KindHostReport  Kind = 34
	KindBorrow      Kind = 40
	KindLend        Kind = 41
	KindAudit       Kind = 42
	KindRelay       Kind = 50
)

// A Message is one of the structs below.
type Message interface{ Kind() Kind }

// An Address is where a message goes: a partition on a scheduler node, or the frontend or host part of
// a node. Exactly one part of a node takes each kind, so the kind chooses among them; Partition is set
// for messages to a partition and 0 otherwise.
type Address struct {
	Node      starling.NodeID
	Partition starling.PartitionID
}

// Acquire asks a partition for one slot of one instance. Frontend → partition.
type Acquire struct {
	Call      uint64 // drawn by the frontend, unique in its life; the answer carries it
	Partition starling.PartitionID
	Epoch     starling.Epoch // as the frontend's map says
	Key       starling.Key64
	Version   starling.VersionID
	Wait      time.Duration // the call gives up after this
}

// Cancel withdraws an Acquire that was not answered yet. Frontend → partition.
type Cancel struct {
	Partition starling.PartitionID
	Call      uint64
}

// Release returns leases before their time. Busy is how long their slots worked, for the profile.
type Release struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Leases    []starling.LeaseID
	Demand    []Demand
}

// Renew prolongs leases in a batch and reports demand. Frontend → partition.
type Renew struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Leases    []starling.LeaseID
	Demand    []Demand
}

// Demand is what a frontend saw of one version since its last report.
type Demand struct {
	Version  starling.VersionID
	Arrivals uint32        // calls that came in
	Waiting  uint32        // calls without a lease now
	InFlight uint32        // calls at an instance now
	Done     uint32        // calls that ended
	Busy     time.Duration // summed run time of those that ended
}

// Census asks which calls are at work on the hosts under leases of lives before Epoch with keys in Range, and has the frontend begin
// no other call under such leases, whatever the host. Partition that takes over → frontend.
type Census struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Range     starling.Range
	Hosts     []starling.NodeID // that cannot be asked themselves, at most HostMax
}

// AtWork answers a Census, once the frontend has heard of the partition's new life. Frontend → partition.
type AtWork struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Hosts     []starling.NodeID // of the Census
	Leases    []starling.Lease  // at most LeaseMax
	More      bool              // than Leases
}

// Grant answers an Acquire. Partition → frontend.
type Grant struct {
	Call  uint64
	Lease starling.Lease
}

// Reject answers an Acquire that gets no lease. Kind Moved means: refresh the map and ask its owner.
type Reject struct {
	Call      uint64
	Partition starling.PartitionID
	Reject    starling.Kind
	Reason    string // stable word, such as "ConcurrencyLimit", "QueueFull", "Runtime.InitError"
	Message   string
	After     time.Duration
}

// Recall asks for leases back as soon as their slots are idle. Partition → frontend.
type Recall struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Leases    []starling.LeaseID
}

// Renewed says which leases live for another TTL; those asked for and not named are gone.
type Renewed struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	TTL       time.Duration
	Leases    []starling.LeaseID
}

// Start asks a host for an instance. Partition → host.
type Start struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Instance  starling.InstanceID
	Key       starling.Key64 // of the call that wants it; says which range owns the instance
	Version   starling.VersionID
}

// Stop asks a host to end an instance; calls at it are finished first unless Now is set.
type Stop struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Instance  starling.InstanceID
	Now       bool
}

// Fence raises the epoch of a range at a host and asks what runs there. Partition → host.
type Fence struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Range     starling.Range
	Since     starling.Epoch // leases of this epoch and later are good; Epoch when an older release says nothing
}

// Started says that an instance is ready for calls. Host → partition.
type Started struct {
	Partition starling.PartitionID
	Host      starling.NodeID
	Instance  starling.InstanceID
	Start     time.Duration // taking a sandbox and attaching the code
	Init      time.Duration // the function's own initialisation
}

// StartFailed says that an instance will not come. Host → partition. Reason Full means: no room here, try
// another host. Kind Failed carries the function's init error type and is the version's own fault.
type StartFailed struct {
	Partition starling.PartitionID
	Host      starling.NodeID
	Instance  starling.InstanceID
	Fault     starling.Kind
	Reason    string
	Message   string
}

// Exited says that a ready instance is gone. Host → partition.
type Exited struct {
	Partition starling.PartitionID
	Host      starling.NodeID
	Instance  starling.InstanceID
	Reason    string // error type, or "stopped"
}

// Fenced answers a Fence: the host obeys Epoch for the range from now on.
type Fenced struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Host      starling.NodeID
	Instances []InstanceReport

	Runs []RunReport // of versions of Instances, those of which the host knows it, each once; none from an older release
}

// A RunReport is how long the calls of a version run on a host, so that a new owner need not start instances to find out.
type RunReport struct {
	Version starling.VersionID
	Mean    time.Duration // above 0
}

// An InstanceReport is what a host knows of one instance in a fenced range.
type InstanceReport struct {
	Instance starling.InstanceID
	Key      starling.Key64
	Version  starling.VersionID
	Ready    bool             // false while it starts; its Started follows, addressed to the asking partition
	Busy     uint16           // slots at work now
	Idle     time.Duration    // since its last call; 0 when busy
	Leases   []starling.Lease // in use at this moment: the host honours them until they end
}

// HostReport is a host's room, sent to every scheduler node every 500 ms and when it changes much.
// Partition is 0: the node's hub hands it to each of its partitions.
type HostReport struct {
	Host      starling.NodeID
	Zone      starling.Zone
	FreeMiB   uint32 // memory that new instances may claim
	TotalMiB  uint32
	Instances uint32
	Starting  uint32
	CPU       uint16 // busy share of all cores, in thousandths
	Draining  bool
	Pools     []PoolReport
	Versions  []starling.VersionID // whose code is unpacked here, most recent first, at most 64

	Isolations starling.Isolations // that it can give; a host of an older release does not say, and gives process
}

// A PoolReport is the stock of one runtime's pool.
type PoolReport struct {
	Runtime   starling.Runtime
	Ready     uint32
	Isolation starling.Isolation // empty for process
}

// Relay hands on what reached a partition's former owner. Former owner → owner.
type Relay struct {
	From starling.NodeID // who sent Body
	Body Message         // no Relay
}

func (*Relay) Kind() Kind       { return KindRelay }
func (*Acquire) Kind() Kind     { return KindAcquire }
func (*Cancel) Kind() Kind      { return KindCancel }
func (*Release) Kind() Kind     { return KindRelease }
func (*Renew) Kind() Kind       { return KindRenew }
func (*Grant) Kind() Kind       { return KindGrant }
func (*Reject) Kind() Kind      { return KindReject }
func (*Recall) Kind() Kind      { return KindRecall }
func (*Renewed) Kind() Kind     { return KindRenewed }
func (*Start) Kind() Kind       { return KindStart }
func (*Stop) Kind() Kind        { return KindStop }
func (*Fence) Kind() Kind       { return KindFence }
func (*Started) Kind() Kind     { return KindStarted }
func (*StartFailed) Kind() Kind { return KindStartFailed }
func (*Exited) Kind() Kind      { return KindExited }
func (*Fenced) Kind() Kind      { return KindFenced }
func (*HostReport) Kind() Kind  { return KindHostReport }

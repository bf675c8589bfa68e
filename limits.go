package starling

import "time"

// The limits of DESIGN, as defaults. Each is enforced with a typed refusal where its name is used.
const (
	PayloadMax      = 6 << 20          // bytes of one synchronous request or buffered response
	CallTimeMax     = 15 * time.Minute // longest run of one synchronous call
	CodeZipMax      = 50 << 20         // bytes of an uploaded zip
	CodeUnpackedMax = 250 << 20        // bytes of all files in it
	CodeEntryMax    = 100_000          // entries in it
	CodeRatioMax    = 200              // unpacked bytes for each packed byte, over the whole zip
	EnvMax          = 4 << 10          // bytes of all names and values of a function's environment
	LayersMax       = 5                // layers of one function; they and its code share CodeUnpackedMax
	DescriptionMax  = 256              // bytes of what people are told of a function or a layer
	MemoryMinMiB    = 128
	MemoryMaxMiB    = 10 << 10
	SlotsMax        = 100              // concurrent calls of one instance
	ConcurrencyMax  = 1000             // concurrent calls of one account
	QueueMax        = 10_000           // waiting calls of one function
	QueueAgeMax     = 30 * time.Second // longest wait of one call
	FrameInlineMax  = 64 << 10         // bytes of a frame on a shared stream; larger bodies take their own
	PartitionMax    = 4096
	MailboxMax      = 65_536    // events waiting for one actor
	LogCallMax      = 256 << 10 // bytes of output kept of one call
	LogLineMax      = 16 << 10  // bytes of one line of output; longer lines are cut
	LogTailMax      = 4 << 10   // bytes of output returned with an answer on request
)

// The times of the lease and membership protocols.
const (
	LeaseTTL          = time.Second            // life of a lease without renewal
	LeaseIdleReturn   = 20 * time.Millisecond  // a frontend returns a slot idle for so long
	HeartbeatInterval = 100 * time.Millisecond // node → manager leader
	NodeLease         = 600 * time.Millisecond // a node not heard of for so long is dead
	NodeLeaseGuard    = 100 * time.Millisecond // an owner stops granting so long before its node lease ends
)

// CPU follows from memory, as tenants of other platforms know it.
const (
	MemoryOfCPU = 1769 // MiB that buy one CPU
	CPUMin      = 0.25 // CPUs of the smallest function
)

// CPUOf returns how many CPUs the calls of a function with so much memory may use.
func CPUOf(memoryMiB int) float64 { return max(CPUMin, float64(memoryMiB)/MemoryOfCPU) }

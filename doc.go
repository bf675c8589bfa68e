// Package starling is the vocabulary of Starling, a serverless function platform that people run
// on their own machines. It imports nothing of ours, holds no clock and opens no file.
//
// # The system in one page
//
// An [Account] owns functions. A [Function] is a name and a movable latest [Version]; a Version is an
// immutable snapshot of code and configuration, named in the whole cluster by its [VersionID]. One call
// is an [Invocation] and ends in an [Outcome].
//
// Every function has a span of 2^32 places in a 64-bit key space ([KeyOf]). A partition owns a [Range] of
// that space; it is a virtual actor whose place and [Epoch] are agreed by a small replicated manager.
// The partition decides which instance serves which call: it grants a frontend a [Lease], a right,
// bounded in time, to use slots of one instance. The frontend carries the payload to the host of that
// instance itself; payloads never pass a partition.
//
//	client ──HTTP or QUIC──▶ frontend        authenticate, resolve, key → partition → owner
//	frontend ──acquire─────▶ scheduler node  partition: admit, pick or start an instance, grant a lease
//	frontend ──payload─────▶ host            checks the lease, hands the call to the instance
//	instance ──────────────▶ host ──▶ frontend ──▶ client
//
// A [Layer] is files that functions of one account share; a Version names the layers it sees under /opt.
//
// A host keeps pools of pre-warmed sandboxes, one pool per [Isolation] and [Runtime]. A sandbox is specialised once with
// the code of one version, is then an instance, and is never returned to the pool.
//
// Start reading at this package, then sched (the brain, pure), actors/partition and actors/host (its
// shells), cluster (what all nodes agree on) and frontend (the way in).
package starling

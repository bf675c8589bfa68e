// Package crash names the points at which tests end the process as a power switch would. Only programs built with the tag
// crashpoints can be told to: in all others Here does nothing and is not even called.
//
// Such a program reads "NAME TIMES" from the file that STARLING_CRASH names, at its start and at each SIGUSR2, and kills
// itself when it comes by the point of that name for that time. An empty file disarms it.
package crash

// A Point names a place in the program.
type Point string

// All points, in the order in which a change meets them. "before" and "after" are around what the name says.
const (
	BeforeAppend   Point = "raft-append-before" // of the replicated log's file
	AfterAppend    Point = "raft-append-after"
	BeforeSync     Point = "raft-sync-before"
	AfterSync      Point = "raft-sync-after"
	BeforeRename   Point = "raft-rename-before"
	AfterRename    Point = "raft-rename-after"
	BeforeApply    Point = "apply-before" // of a command by the state
	AfterApply     Point = "apply-after"
	BeforeAck      Point = "ack-before" // of a proposal by the leader
	AfterAck       Point = "ack-after"
	BeforeSnapshot Point = "snapshot-before" // of the state
	AfterSnapshot  Point = "snapshot-after"
	BeforeReplace  Point = "file-rename-before" // of a small file: identity, membership, the replica's number and term
	AfterReplace   Point = "file-rename-after"
	BeforeCode     Point = "code-rename-before" // of an unpacked package
	AfterCode      Point = "code-rename-after"
	BeforeOffer    Point = "handover-offer-before" // by the owner
	BeforeFreeze   Point = "handover-freeze-before"
	BeforeHold     Point = "handover-hold-before"
	BeforePropose  Point = "handover-propose-before"
	BeforeDone     Point = "handover-done-before"
	BeforeReady    Point = "handover-ready-before" // by the next owner
	BeforeHeld     Point = "handover-held-before"
	AfterHeld      Point = "handover-held-after"
	BeforeTake     Point = "handover-take-before"
)

// All lists every point.
var All = []Point{BeforeAppend, AfterAppend, BeforeSync, AfterSync, BeforeRename, AfterRename, BeforeApply, AfterApply, BeforeAck, AfterAck, BeforeSnapshot, AfterSnapshot,
	BeforeReplace, AfterReplace, BeforeCode, AfterCode, BeforeOffer, BeforeFreeze, BeforeHold, BeforePropose, BeforeDone, BeforeReady, BeforeHeld, AfterHeld, BeforeTake}

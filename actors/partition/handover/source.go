// Package handover decides how a planned change of a partition is carried out by its owner: in which order it asks,
// freezes, hands over and proposes, and what it does when any of that fails. It is pure; actors/partition is its shell.
//
// Two rules make it safe. From Freeze on nothing is granted in the epoch until Thaw, whatever becomes of the actor, and
// Thaw never follows a proposal whose outcome is not certain. An uncertain one is settled by a second change of the same epoch: the map takes one of the two.
package handover

import "starling/cluster/partmap"

// An Event is what became of the effect that was carried out last.
type Event uint8

const (
	Begin   Event = iota // the order is to be carried out
	Ready                // the node that is to have the partition waits for its state
	Frozen               // nothing is granted any more
	Held                 // the state is where it will be needed
	Applied              // the map has the change
	Lost                 // the map has another change of this epoch, for certain
	Unsure               // the change was proposed, and may or may not be in the map, now or later
	Refused              // somebody said no, or did not say anything in time, or went away
)

// An Effect is what the shell must do next. All but the last of an answer need no event.
type Effect uint8

const (
	Offer   Effect = iota // ask the other node to get ready: Ready or Refused
	Freeze                // have the actors stop granting and tell their state: Frozen or Refused
	Hold                  // bring the state to where it will be needed: Held or Refused
	Propose               // propose the change: Applied, Lost or Unsure
	Settle                // propose to assign the partition to this node, until the map has one of the two: Applied or Lost
	Forget                // have the state dropped where it is held
	Thaw                  // have the actors whose epochs have not passed go on
	Done                  // report success
	Fail                  // report failure
)

// A Source carries out one change as the owner. Its zero value is not ready: use New.
type Source struct {
	change partmap.Change
	phase  phase
}

type phase uint8

const (
	fresh phase = iota
	offering
	freezing
	holding
	proposing
	settling
	ended
)

// New returns the course of a Move, Split or Merge.
func New(c partmap.Change) *Source { return &Source{change: c} }

// Step takes what became of the last effect and returns what to do now, in order. An event that does not belong to the
// phase changes nothing.
func (s *Source) Step(ev Event) []Effect {
	switch s.phase {
	case fresh:
		if ev == Begin {
			if s.change.Kind == partmap.Move {
				return s.to(offering, Offer)
			}
			return s.to(freezing, Freeze)
		}
	case offering:
		switch ev {
		case Ready:
			return s.to(freezing, Freeze)
		case Refused:
			return s.to(ended, Fail)
		}
	case freezing:
		switch ev {
		case Frozen:
			return s.to(holding, Hold)
		case Refused:
			return s.to(ended, Forget, Thaw, Fail)
		}
	case holding:
		switch ev {
		case Held:
			return s.to(proposing, Propose)
		case Refused:
			return s.to(ended, Forget, Thaw, Fail)
		}
	case proposing, settling:
		switch {
		case ev == Applied:
			return s.to(ended, Done)
		case ev == Lost:
			return s.to(ended, Forget, Thaw, Fail) // a merge's other half may go on
		case ev == Unsure && s.phase == proposing:
			return s.to(settling, Settle)
		}
	}
	return nil
}

func (s *Source) to(p phase, do ...Effect) []Effect {
	s.phase = p
	return do
}

// String returns the word of transcripts.
func (e Effect) String() string {
	return [...]string{"offer", "freeze", "hold", "propose", "settle", "forget", "thaw", "done", "fail"}[e]
}

// String returns the word of transcripts.
func (e Event) String() string {
	return [...]string{"begin", "ready", "frozen", "held", "applied", "lost", "unsure", "refused"}[e]
}

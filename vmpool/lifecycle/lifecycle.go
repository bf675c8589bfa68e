// Package lifecycle holds the legal states of one instance and what may move it between them. It is pure:
// package vmpool does what the actions say. A sandbox is taken once, specialised once, and never goes back.
package lifecycle

import "fmt"

// A State is where an instance is in its life.
type State uint8

const (
	Warm     State = iota // cloned, nothing of a tenant in it
	Starting              // code attached, its initialisation runs
	Idle                  // ready, no call
	Paused                // ready, no call, its processes are frozen
	Busy                  // at least one call
	Draining              // at least one call, takes no more, ends with the last
	Ended                 // destroyed or about to be; nothing leads out
)

var stateNames = [...]string{"warm", "starting", "idle", "paused", "busy", "draining", "ended"}

// String returns the word of logs and transcripts.
func (s State) String() string { return stateNames[s] }

// An Event is what happened to an instance.
type Event uint8

const (
	Take   Event = iota // a version claims the sandbox
	Ready               // the initialisation ended well
	Begin               // a call arrives
	End                 // a call ended and left the code usable
	Pause               // nothing came for a while
	Retire              // stop politely: asked to, or too old
	Fault               // time-out, exit, broken protocol, failed initialisation
	Kill                // stop at once
)

var eventNames = [...]string{"take", "ready", "begin", "end", "pause", "retire", "fault", "kill"}

// String returns the word of logs and transcripts.
func (e Event) String() string { return eventNames[e] }

// An Action is what the owner of the instance must do after an event.
type Action uint8

const (
	Nothing Action = iota
	Thaw           // resume the processes before the call is handed over
	Freeze         // pause the processes
	Destroy        // close the sandbox; said exactly once
	Refuse         // the event is not legal now; nothing changed
)

var actionNames = [...]string{"nothing", "thaw", "freeze", "destroy", "refuse"}

// String returns the word of logs and transcripts.
func (a Action) String() string { return actionNames[a] }

// An Instance is one instance's place in its life. The zero value with Slots set is a warm sandbox.
type Instance struct {
	State State
	Slots int // calls at once, at least 1
	Busy  int // calls at work, also those that outlive the end
}

// Step applies ev and says what to do. Calls at work when an instance ends still send End; it is taken silently.
func (i *Instance) Step(ev Event) Action {
	switch ev {
	case Begin:
		return i.begin()
	case End:
		return i.end()
	case Fault, Kill:
		return i.destroy()
	case Retire:
		if i.State == Busy {
			i.State = Draining
			return Nothing
		}
		if i.State == Draining {
			return Nothing
		}
		return i.destroy()
	case Take:
		return i.move(Warm, Starting, Nothing)
	case Ready:
		return i.move(Starting, Idle, Nothing)
	case Pause:
		return i.move(Idle, Paused, Freeze)
	}
	return Refuse
}

func (i *Instance) move(from, to State, a Action) Action {
	if i.State != from {
		return Refuse
	}
	i.State = to
	return a
}

func (i *Instance) begin() Action {
	switch {
	case i.State == Paused:
		i.State, i.Busy = Busy, 1
		return Thaw
	case i.State == Idle, i.State == Busy && i.Busy < i.Slots:
		i.State = Busy
		i.Busy++
		return Nothing
	}
	return Refuse
}

func (i *Instance) end() Action {
	if i.Busy == 0 {
		return Refuse
	}
	i.Busy--
	if i.Busy > 0 || i.State == Ended {
		return Nothing
	}
	if i.State == Draining {
		return i.destroy()
	}
	i.State = Idle
	return Nothing
}

func (i *Instance) destroy() Action {
	if i.State == Ended {
		return Nothing
	}
	i.State = Ended
	return Destroy
}

// Check reports the first broken rule.
func (i *Instance) Check() error {
	if i.Busy < 0 || i.Busy > i.Slots {
		return fmt.Errorf("%d calls at work in %d slots", i.Busy, i.Slots)
	}
	if busy := i.State == Busy || i.State == Draining; busy != (i.Busy > 0) && i.State != Ended {
		return fmt.Errorf("%d calls at work while %s", i.Busy, i.State)
	}
	return nil
}

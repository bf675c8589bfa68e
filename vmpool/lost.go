package vmpool

import "starling"

const lostWords = "A part of the function's package cannot be read from anywhere: try again, or deploy it again"

// codeLost reports whether code that the instance asked for cannot be had.
func (i *Instance) codeLost() bool {
	select {
	case <-i.cfg.Lost:
		return true
	default:
		return false
	}
}

// orLost says of a start that failed that its code was not there, when that is so: whatever it failed of then is no fault of the function.
func (i *Instance) orLost(err error) error {
	if !i.codeLost() {
		return err
	}
	return starling.Errorf(starling.Unavailable, "start instance", "%s: %w", lostWords, err).With(starling.ErrCodeLost)
}

// blameLoss makes the error of a call whose code could not be read the platform's. The loss is known before the reader hears of it.
func (i *Instance) blameLoss(out *starling.Outcome) {
	if out.Status != starling.Succeeded && i.codeLost() {
		out.Status, out.ErrorType = starling.Unhandled, starling.ErrCodeLost
	}
}

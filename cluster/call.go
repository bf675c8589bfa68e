package cluster

import (
	"context"
	"time"

	"starling"
)

const (
	callTimeMax    = 15 * time.Second // for a caller whose context has no end
	attemptTimeMax = 3 * time.Second  // for one try, after which the leader is asked again
)

// Propose hands the command to the leader, and to the next one when that fails, until ctx ends (or 15 s when
// it has no end). A command whose repetition does no harm is tried again when its answer is lost; a deletion by id that
// finds nothing after such a try counts as carried out. Any other command is tried once (see once), and its caller is told
// that it may have been carried out: the error is Unavailable with ReasonOutcomeUnknown.
func (v *View) Propose(ctx context.Context, cmd Command) (Reply, error) {
	raw, err := EncodeCommand(cmd)
	if err != nil {
		return Reply{}, err
	}
	a, uncertain, err := v.retry(ctx, MessagePropose, Proposal{Command: raw}, !once(cmd))
	if uncertain && starling.KindOf(err) == starling.NotFound && deletes(cmd) {
		a, err = answered{}, nil
	}
	if err != nil {
		return Reply{}, err
	}
	v.cache.touch(cmd) // what this node did it sees at once, not when the feed comes round
	return a.reply, nil
}

// ReasonOutcomeUnknown is the reason of a proposal that may or may not have been carried out.
const ReasonOutcomeUnknown = "OutcomeUnknown"

// deletes reports whether cmd removes something whose id is never given again.
func deletes(cmd Command) bool {
	return cmd.CommandKind() == kindDeleteKey || cmd.CommandKind() == kindRemoveNode
}

// once reports whether cmd must not be tried again once it may have been carried out. It is about something that others
// may change between the two tries: the second would then undo what they did, or be refused although the first was done.
func once(cmd Command) bool {
	switch cmd.CommandKind() {
	case kindCreateAccount, kindDeleteAccount, kindCreateKey, kindPutFunction, kindDeleteFunction, kindPublishVersion, kindSetDraining, kindPublishLayer, kindDeleteLayer:
		return true
	}
	return false
}

// Read answers a query linearizably, from the leader, until ctx ends (or 15 s when it has no end).
func (v *View) Read(ctx context.Context, q Query) (Reply, error) {
	a, _, err := v.retry(ctx, MessageRead, q, true)
	return a.reply, err
}

// Status returns the leader's soft state: who is alive, when each node was heard, and its load.
func (v *View) Status(ctx context.Context) (Status, error) {
	var s Status
	a, _, err := v.retry(ctx, MessageStatus, struct{}{}, true)
	if err != nil {
		return s, err
	}
	err = DecodeMessage(a.body, &s)
	return s, err
}

// Certify returns a new certificate (DER) for this node's id and roles, for the public key in the PKCS #10
// request (DER). Ask well before the old one ends.
func (v *View) Certify(ctx context.Context, request []byte) ([]byte, error) {
	var c Certified
	a, _, err := v.retry(ctx, MessageCertify, Certify{Request: request}, true)
	if err != nil {
		return nil, err
	}
	err = DecodeMessage(a.body, &c)
	return c.Certificate, err
}

// ReasonDiskFull is the reason of a proposal refused because the leader's disk is nearly full: it was not made, and
// asking again does not free space.
const ReasonDiskFull = "DiskFull"

// retry asks the leader until it answers or ctx ends; without again, only until a try may have been acted upon. uncertain
// tells that an earlier try may have been acted upon although no answer came.
func (v *View) retry(ctx context.Context, kind MessageKind, question any, again bool) (a answered, uncertain bool, err error) {
	const op = "ask leading manager"
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeMax)
		defer cancel()
	}
	pause := backOffMin
	var last error = starling.Errorf(starling.Unavailable, op, "no manager leads")
	for {
		l, found := v.leading()
		if l != (leader{}) {
			a, err = v.try(ctx, l, found, kind, question)
			if err == nil || starling.KindOf(err) != starling.Unavailable || starling.ReasonOf(err) == ReasonDiskFull {
				return a, uncertain, err
			}
			uncertain = uncertain || starling.ReasonOf(err) != reasonNotLeader
			if uncertain && !again {
				return answered{}, true, starling.Errorf(starling.Unavailable, op, "the answer was lost: it may have been done. Look, and try again if it was not: %w", err).With(ReasonOutcomeUnknown)
			}
			last = err
			if now, _ := v.leading(); now == l {
				found = nil // the leader is known and cannot answer: pause, do not wait for its end
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return answered{}, uncertain, starling.Errorf(starling.Unavailable, op, "no answer in time, try again: %w", last)
		case <-v.group.Context().Done():
			t.Stop()
			return answered{}, uncertain, starling.Errorf(starling.Unavailable, op, "this node is stopping")
		case <-found:
		case <-t.C:
		}
		t.Stop()
		pause = min(2*pause, backOffMax)
	}
}

// try asks l once. It gives up when the session with l ends, which is known sooner than that a connection is lost.
func (v *View) try(ctx context.Context, l leader, over <-chan struct{}, kind MessageKind, question any) (answered, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, attemptTimeMax)
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	go func() {
		defer close(done)
		select {
		case <-over:
			cancel()
		case <-ctx.Done():
		}
	}()
	stream, err := v.dial(ctx, l)
	if err != nil {
		return answered{}, starling.Errorf(starling.Unavailable, "dial manager", "%w", err).With(reasonNotLeader)
	}
	a, err := exchange(ctx, stream, kind, question)
	v.metrics.calls.UpdateDuration(began)
	return a, err
}

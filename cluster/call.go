package cluster

import (
	"context"
	"crypto/rand"
	"time"

	"starling"
)

const (
	callTimeMax    = 15 * time.Second // for a caller whose context has no end
	attemptTimeMax = 3 * time.Second  // for one try, after which the leader is asked again
)

// Propose hands the command to the leader, and to the next one when that fails, until ctx ends (or 15 s when
// it has no end). A command whose repetition does no harm is tried again when its answer is lost; a deletion by id that
// finds nothing after such a try counts as carried out. Any other command (see once) names its request, and is tried again
// under that name. Beside nodes of an older release, which do not know such names, and when ctx ends before an answer
// came, its caller is told that it may have been carried out: the error is Unavailable with ReasonOutcomeUnknown.
func (v *View) Propose(ctx context.Context, cmd Command) (Reply, error) {
	raw, err := EncodeCommand(cmd)
	if err != nil {
		return Reply{}, err
	}
	var ask asker = always{Proposal{Command: raw}}
	if once(cmd) {
		ask = &named{command: raw}
	}
	a, uncertain, err := v.retry(ctx, MessagePropose, ask)
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

// An asker says what a leader is asked.
type asker interface {
	// ask returns the question to a leader whose last renewal had this Since. Uncertain says that an earlier try may have
	// been acted upon. No question means that the leader must say a Since before it may be asked.
	ask(since uint64, uncertain bool) (question any, ok bool)
	// again reports whether to ask again after a try that may have been acted upon.
	again() bool
}

// always asks the same, as often as it takes.
type always struct{ question any }

func (q always) ask(uint64, bool) (any, bool) { return q.question, true }
func (always) again() bool                    { return true }

// named proposes a command that must not be carried out twice: under a name if the leader knows such names, else once.
type named struct {
	command []byte
	request []byte // empty before the first try under a name
	since   uint64 // before that try
}

func (q *named) ask(since uint64, uncertain bool) (any, bool) {
	switch {
	case since == 0 && !uncertain:
		q.request = nil
		return Proposal{Command: q.command}, true
	case since == 0:
		return nil, false
	case len(q.request) == 0:
		q.request, q.since = make([]byte, 16), since
		_, _ = rand.Read(q.request) // never fails
	}
	return Proposal{Command: q.command, Request: q.request, Since: q.since}, true
}

func (q *named) again() bool { return len(q.request) > 0 }

// once reports whether cmd must not be tried again as it is once it may have been carried out. It is about something that others
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
	a, _, err := v.retry(ctx, MessageRead, always{q})
	return a.reply, err
}

// Status returns the leader's soft state: who is alive, when each node was heard, and its load.
func (v *View) Status(ctx context.Context) (Status, error) {
	var s Status
	a, _, err := v.retry(ctx, MessageStatus, always{struct{}{}})
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
	a, _, err := v.retry(ctx, MessageCertify, always{Certify{Request: request}})
	if err != nil {
		return nil, err
	}
	err = DecodeMessage(a.body, &c)
	return c.Certificate, err
}

// ReasonDiskFull is the reason of a proposal refused because the leader's disk is nearly full: it was not made, and
// asking again does not free space.
const ReasonDiskFull = "DiskFull"

// retry asks the leader until it answers or ctx ends, or until a try may have been acted upon that must not be repeated.
// uncertain tells that an earlier try may have been acted upon although no answer came.
func (v *View) retry(ctx context.Context, kind MessageKind, q asker) (a answered, uncertain bool, err error) {
	const op = "ask leading manager"
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeMax)
		defer cancel()
	}
	pause := backOffMin
	var last error = starling.Errorf(starling.Unavailable, op, "no manager leads")
	for {
		l, since, found := v.leading()
		question, ok := q.ask(since, uncertain)
		if l != (leader{}) && ok {
			a, err = v.try(ctx, l, found, kind, question)
			if err == nil || starling.KindOf(err) != starling.Unavailable || final(err) {
				return a, uncertain, err
			}
			uncertain = uncertain || starling.ReasonOf(err) != reasonNotLeader
			if uncertain && !q.again() {
				return answered{}, true, unknown(err)
			}
			last = err
			if now, _, _ := v.leading(); now == l {
				found = nil // the leader is known and cannot answer: pause, do not wait for its end
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			if _, ok := q.(*named); ok && uncertain {
				return answered{}, true, unknown(last)
			}
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

// final reports whether a refusal as Unavailable is the last word.
func final(err error) bool {
	reason := starling.ReasonOf(err)
	return reason == ReasonDiskFull || reason == ReasonOutcomeUnknown
}

// unknown tells a caller that its command may have been carried out.
func unknown(cause error) error {
	return starling.Errorf(starling.Unavailable, "ask leading manager", "the answer was lost: it may have been done. Look, and try again if it was not: %w", cause).With(ReasonOutcomeUnknown)
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

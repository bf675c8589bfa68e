package cluster

import (
	"starling"
)

// Once carries a command under the name of the request that it comes from, so that the request may be proposed again when
// its answer was lost: the state carries it out the first time and answers every further time what it answered then. The
// leader wraps proposals so when all replicas are at LevelOnce.
type Once struct {
	Request [16]byte `cbor:"1,keyasint"` // drawn at random by who asks
	Since   uint64   `cbor:"2,keyasint"` // index of the state at some instant before the request was proposed first
	Command []byte   `cbor:"3,keyasint"` // encoded; of those that must not be carried out twice
}

// What a state remembers of requests at most. A request is repeated for seconds; what is forgotten sooner is told apart by
// Since and never carried out a second time.
const (
	requestMax      = 1024
	requestBytesMax = 1 << 20 // of outcomes
)

// A request is one that was carried out or refused.
type request struct {
	ID      [16]byte `cbor:"1,keyasint"`
	Index   uint64   `cbor:"2,keyasint"`
	Outcome []byte   `cbor:"3,keyasint"` // EncodeReply's
}

// requests are the last ones, oldest first.
type requests struct {
	list      []request
	bytes     int    // of outcomes
	forgotten uint64 // index of the newest that is not in list any more; 0 for none
}

func (r *requests) find(id [16]byte) (request, bool) {
	for _, q := range r.list {
		if q.ID == id {
			return q, true
		}
	}
	return request{}, false
}

func (r *requests) add(q request) {
	r.list, r.bytes = append(r.list, q), r.bytes+len(q.Outcome)
	for len(r.list) > requestMax || r.bytes > requestBytesMax && len(r.list) > 1 {
		r.bytes -= len(r.list[0].Outcome)
		r.forgotten = r.list[0].Index
		r.list = r.list[1:]
	}
}

// named reports whether a request was ever applied: then every replica of this state knows them, also one that is not heard.
func (r *requests) named() bool { return len(r.list) > 0 || r.forgotten > 0 }

// applyOnce carries the command out, unless it was before.
func (s *State) applyOnce(c *Once) (Reply, error) {
	const op = "apply request"
	if q, ok := s.requests.find(c.Request); ok {
		return DecodeReply(q.Outcome)
	}
	if c.Since < s.requests.forgotten {
		return Reply{}, starling.Errorf(starling.Unavailable, op, "whether it was done is forgotten: look, and try again if it was not").With(ReasonOutcomeUnknown)
	}
	cmd, err := DecodeCommand(c.Command)
	if err != nil {
		return Reply{}, err
	}
	if !once(cmd) {
		return Reply{}, starling.Errorf(starling.Invalid, op, "command %d may be repeated as it is", cmd.CommandKind())
	}
	reply, err := s.apply(cmd)
	reply.Index = s.index
	s.requests.add(request{ID: c.Request, Index: s.index, Outcome: EncodeReply(reply, err)})
	return reply, err
}

package actors

import (
	"encoding/binary"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/actors/wire"
	"starling/transport"
)

// A PartitionReceiver takes what arrives for the partitions of this node. Partition 0 stands for all of them.
type PartitionReceiver interface {
	// ReceiveFor is Receiver.Receive for one partition; the batch and its messages belong to the receiver, except
	// that the messages of a batch for partition 0 are shared and must not be changed.
	ReceiveFor(p starling.PartitionID, from starling.NodeID, batch []wire.Message)
}

// Parts are the receivers of one node; nil for a role it does not have.
type Parts struct {
	Frontend   Receiver          // Grant, Reject, Recall, Renewed
	Host       Receiver          // Start, Stop, Fence
	Partitions PartitionReceiver // everything else
}

// HubConfig says who a hub speaks for and how it reaches others.
type HubConfig struct {
	Self     starling.NodeID
	Endpoint transport.Endpoint
	// Addr returns where a node's endpoint is, "" when nobody knows. It is asked for every message: it must be cheap.
	Addr func(starling.NodeID) string
	Log  *slog.Logger
}

// A Hub is the post of one node. What is for the node itself is handed over as it is; what is for another one goes
// over one link to it. Each end dials for what it has to say, so a pair of nodes has a link in each direction.
//
// Create it with NewHub, give it the parts of the node with Bind, both before the endpoint is opened, and Close it
// before the endpoint; Close waits for the goroutines of the links it dialled. Readers of streams that others
// dialled belong to the endpoint.
type Hub struct {
	cfg   HubConfig
	parts Parts
	links *transport.Links
	parcels
	set *metrics.Set

	sent, local, received      *metrics.Counter
	lostAddress, lostLink      *metrics.Counter
	strange, forbidden, nobody *metrics.Counter
	buffers                    sync.Pool
	closed                     atomic.Bool
}

var _ Post = (*Hub)(nil)

// NewHub returns a hub and registers it with the endpoint for ChannelActor.
func NewHub(cfg HubConfig) *Hub {
	h := &Hub{cfg: cfg, set: metrics.NewSet()}
	h.buffers.New = func() any { b := make([]byte, 0, 1024); return &b }
	h.sent = h.set.NewCounter(`starling_post_messages_sent_total{to="peer"}`)
	h.local = h.set.NewCounter(`starling_post_messages_sent_total{to="self"}`)
	h.received = h.set.NewCounter(`starling_post_messages_received_total`)
	h.lostAddress = h.set.NewCounter(`starling_post_messages_lost_total{why="no address"}`)
	h.lostLink = h.set.NewCounter(`starling_post_messages_lost_total{why="link"}`)
	h.strange = h.set.NewCounter(`starling_post_messages_lost_total{why="not understood"}`)
	h.forbidden = h.set.NewCounter(`starling_post_messages_lost_total{why="role"}`)
	h.nobody = h.set.NewCounter(`starling_post_messages_lost_total{why="no receiver"}`)
	h.links = transport.NewLinks(transport.LinksConfig{Endpoint: cfg.Endpoint, Channel: transport.ChannelActor})
	cfg.Endpoint.Handle(transport.ChannelActor, h.serve)
	return h
}

// Bind says who takes what arrives. Call it once, before the endpoint is opened.
func (h *Hub) Bind(p Parts) { h.parts = p }

// Metrics returns the hub's set.
func (h *Hub) Metrics() *metrics.Set { return h.set }

// Self is this node.
func (h *Hub) Self() starling.NodeID { return h.cfg.Self }

// Close ends the links. Messages sent afterwards are lost, except those for the node itself.
func (h *Hub) Close() error {
	h.closed.Store(true)
	h.links.Close()
	return nil
}

// Send sends m, which belongs to the receiver from now on. It does not block, and what cannot go now is lost: every
// protocol above asks again. A message to this node is received before Send returns, so hold no lock that the
// receiver may want.
func (h *Hub) Send(to wire.Address, m wire.Message) {
	if to.Node == h.cfg.Self {
		h.local.Inc()
		h.deliver(to.Partition, h.cfg.Self, m.Kind(), []wire.Message{m})
		return
	}
	addr := h.cfg.Addr(to.Node)
	if addr == "" {
		h.lostAddress.Inc()
		return
	}
	b := h.buffers.Get().(*[]byte)
	body := wire.Append((*b)[:0], m)
	var err error
	if len(body) <= transport.FrameBodyMax {
		err = h.links.Send(addr, uint8(m.Kind()), uint64(to.Partition), body)
	} else {
		err = h.parcels.send(h.links, addr, m.Kind(), to.Partition, body)
	}
	if cap(body) <= 64<<10 {
		*b = body
		h.buffers.Put(b)
	}
	if err != nil {
		h.lostLink.Inc()
		return
	}
	h.sent.Inc()
}

// deliver hands a batch of one kind of receiver to it.
func (h *Hub) deliver(p starling.PartitionID, from starling.NodeID, k wire.Kind, batch []wire.Message) {
	switch to := receiverOf(k); {
	case to == toFrontend && h.parts.Frontend != nil:
		h.parts.Frontend.Receive(from, batch)
	case to == toHost && h.parts.Host != nil:
		h.parts.Host.Receive(from, batch)
	case to == toPartition && h.parts.Partitions != nil:
		h.parts.Partitions.ReceiveFor(p, from, batch)
	default:
		h.nobody.Add(len(batch))
	}
}

type part uint8

const (
	toNobody part = iota
	toFrontend
	toHost
	toPartition
)

// receiverOf returns which part of a node takes a kind of message.
func receiverOf(k wire.Kind) part {
	switch k {
	case wire.KindAcquire, wire.KindCancel, wire.KindRelease, wire.KindRenew,
		wire.KindStarted, wire.KindStartFailed, wire.KindExited, wire.KindFenced, wire.KindHostReport,
		wire.KindBorrow, wire.KindLend, wire.KindAudit, wire.KindRelay, wire.KindAtWork:
		return toPartition
	case wire.KindGrant, wire.KindReject, wire.KindRecall, wire.KindRenewed, wire.KindCensus:
		return toFrontend
	case wire.KindStart, wire.KindStop, wire.KindFence:
		return toHost
	}
	return toNobody
}

// senderOf returns the role that may send a kind of message.
func senderOf(k wire.Kind) starling.Roles {
	switch k {
	case wire.KindAcquire, wire.KindCancel, wire.KindRelease, wire.KindRenew, wire.KindAtWork:
		return starling.RoleFrontend
	case wire.KindStarted, wire.KindStartFailed, wire.KindExited, wire.KindFenced, wire.KindHostReport:
		return starling.RoleHost
	}
	return starling.RoleScheduler
}

// serve reads one stream that another node opened, on the endpoint's goroutine.
func (h *Hub) serve(s transport.Stream) {
	l := transport.OpenLink(s, transport.LinkConfig{})
	defer l.Close()
	in := &inbox{hub: h, peer: s.Peer(), link: l}
	if err := l.Serve(in.take); err != nil && !h.closed.Load() {
		h.cfg.Log.Debug("actor link ended", "peer", in.peer.Node.String(), "err", err)
	}
}

// An inbox turns the frames of one stream into messages, grouped by receiver.
type inbox struct {
	hub     *Hub
	peer    transport.Peer
	link    *transport.Link
	decoder wire.Decoder
	parcel  parcel
	groups  []group
}

// A group is what one read brought for one receiver.
type group struct {
	to        part
	partition starling.PartitionID
	batch     []wire.Message
}

// take is the link's handler: everything that had arrived becomes one batch for each receiver.
func (in *inbox) take(frames []transport.Frame) {
	for i := range frames {
		f := &frames[i]
		kind, partition, body := wire.Kind(f.Kind), starling.PartitionID(f.ID), f.Body
		if f.Kind == parcelKind {
			var done bool
			if kind, partition, body, done = in.parcel.take(f); !done {
				continue
			}
		}
		if !in.message(kind, partition, body, len(frames)-i) {
			in.link.Close() // and what else it brought is not listened to
			in.groups = in.groups[:0]
			return
		}
	}
	in.hub.received.Add(len(frames))
	for i := range in.groups {
		g := &in.groups[i]
		in.hub.deliver(g.partition, in.peer.Node, g.batch[0].Kind(), g.batch)
		g.batch = nil // it belongs to the receiver now
	}
	in.groups = in.groups[:0]
}

// message decodes one message into the group of its receiver; left is how many frames there are from here on. It
// reports false when the node may not send such a message.
func (in *inbox) message(kind wire.Kind, p starling.PartitionID, body []byte, left int) bool {
	to := receiverOf(kind)
	if to == toNobody {
		in.hub.strange.Inc() // a newer node speaks of things unknown here
		return true
	}
	if !in.peer.Roles.Has(senderOf(kind)) {
		in.hub.forbidden.Inc()
		in.hub.cfg.Log.Warn("node sent a message its role does not allow: its link is closed",
			"node", in.peer.Node.String(), "roles", in.peer.Roles.String(), "kind", uint8(kind))
		return false
	}
	m, err := in.decoder.Decode(kind, body)
	if err != nil {
		in.hub.strange.Inc()
		return true
	}
	if to != toPartition {
		p = 0
	}
	for i := range in.groups {
		if g := &in.groups[i]; g.to == to && g.partition == p {
			g.batch = append(g.batch, m)
			return true
		}
	}
	in.groups = append(in.groups, group{to, p, append(make([]wire.Message, 0, min(left, 64)), m)})
	return true
}

// Messages over the size of a frame travel as parcels: frames of kind 0, each with a head and a part. Only one is
// under way on a node at a time, so a parcel whose number is not the one begun was cut short and is forgotten.
const (
	parcelKind = 0
	parcelHead = 1 + 8 + 4 // kind, partition, bytes in all
	parcelPart = 60 << 10  // bytes
	parcelMax  = 16 << 20  // bytes
)

type parcels struct {
	mu     sync.Mutex // held while a parcel is handed to a link, which does not block
	number uint64
}

func (p *parcels) send(links *transport.Links, addr string, k wire.Kind, to starling.PartitionID, body []byte) error {
	if len(body) > parcelMax {
		return starling.Errorf(starling.TooLarge, "send message", "kind %d has %d bytes: the limit is %d", k, len(body), parcelMax)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	var head [parcelHead]byte
	head[0] = byte(k)
	binary.LittleEndian.PutUint64(head[1:], uint64(to))
	binary.LittleEndian.PutUint32(head[9:], uint32(len(body)))
	for len(body) > 0 {
		n := min(len(body), parcelPart)
		if err := links.Send(addr, parcelKind, p.number, head[:], body[:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}

// A parcel is one being put together.
type parcel struct {
	number uint64
	body   []byte
}

// take adds a part; done is true when it was the last.
func (p *parcel) take(f *transport.Frame) (k wire.Kind, to starling.PartitionID, body []byte, done bool) {
	if len(f.Body) < parcelHead {
		return 0, 0, nil, false
	}
	total := int(binary.LittleEndian.Uint32(f.Body[9:]))
	if f.ID != p.number || p.body == nil {
		p.number, p.body = f.ID, make([]byte, 0, min(total, 4*parcelPart)) // a head alone must not cost much
	}
	if total > parcelMax || len(p.body)+len(f.Body)-parcelHead > total {
		p.body = nil
		return 0, 0, nil, false
	}
	p.body = append(p.body, f.Body[parcelHead:]...)
	if len(p.body) < total {
		return 0, 0, nil, false
	}
	body, p.body = p.body, nil
	return wire.Kind(f.Body[0]), starling.PartitionID(binary.LittleEndian.Uint64(f.Body[1:])), body, true
}

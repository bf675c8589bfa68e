// Package capture is the host's hand in a sandbox's network: every connection and datagram of the code inside comes to it, whatever
// it was for, and it sends the answers. In a network namespace its own sockets lie, to which package steer gives everything; from a
// guest of a kernel of its own it comes caught already. The code needs to know nothing of it.
package capture

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/internal/run"
	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/splice"
)

// The limits of one sandbox. What comes over them is reset, or dropped.
const (
	connMax   = 2048             // connections at once
	dgramMax  = 512              // flows of datagrams at once
	queueMax  = 64               // datagrams that wait to be sent in one flow
	openTime  = 20 * time.Second // longest wait for the gateway's answer
	idleConn  = time.Hour        // the gateway's idle time is shorter: this ends what it forgot
	idleDgram = time.Minute
)

// A Way is where the flows of one instance go.
type Way interface {
	// Open begins a flow and returns when the gateway has let it through.
	Open(ctx context.Context, kind header.Kind, to netip.AddrPort) (transport.Stream, error)
	// Ended is told why a TCP flow that began, or came to the outlet, is over.
	Ended(why splice.End)
	// Close ends the way; no flow is begun after it.
	Close()
}

// A Maker makes the outlets of one host.
type Maker struct {
	// Way returns where the flows of an attachment go.
	Way func(starling.Attachment) Way
	// Means are what catches in namespaces; Lookup when empty.
	Means Means
	Log   *slog.Logger
}

// An Outlet is where one sandbox lets its code out. Prepare or Caught makes it, Connect lets the code inside out, Close ends it. With
// sockets of its own it has two goroutines from Connect on; each flow has two, and Close waits for all.
type Outlet struct {
	maker   *Maker
	sockets *sockets // nil where a guest catches
	// say sends a datagram to the code of a guest; nil where there are sockets.
	say   func(as, to netip.AddrPort, d []byte)
	group *run.Group
	way   Way
	as    starling.Attachment // from Connect on
	conns atomic.Int64

	mu      sync.Mutex // guards what follows
	flows   map[pair]*dgrams
	answers map[netip.AddrPort]*answerer
	told    time.Time // when a denied flow was last written down
}

func (m *Maker) outlet() *Outlet {
	return &Outlet{maker: m, flows: map[pair]*dgrams{}, answers: map[netip.AddrPort]*answerer{}}
}

// Prepare puts into a namespace what lets code out later. Until Connect the code notices nothing: there is no route, and nothing
// listens. It owns ns, also when it fails.
func (m *Maker) Prepare(ns *os.File) (*Outlet, error) {
	o := m.outlet()
	o.sockets = &sockets{ns: ns}
	if err := o.sockets.prepare(m.Means); err != nil {
		return nil, errors.Join(starling.Errorf(starling.Unavailable, "prepare sandbox's network", "%w", err), o.Close())
	}
	return o, nil
}

// Caught returns the outlet of a sandbox whose own kernel catches what its code sends out. From Connect on it is given to Flow and
// Datagram; say sends a datagram as an address to another inside, and may wait until the sandbox has ended.
func (m *Maker) Caught(say func(as, to netip.AddrPort, d []byte)) *Outlet {
	o := m.outlet()
	o.say = say
	return o
}

// Connect lets the code inside out as an attachment, from now on. Once only.
func (o *Outlet) Connect(as starling.Attachment) error {
	const op = "connect sandbox"
	if o.way != nil {
		return starling.Errorf(starling.Invalid, op, "it has a network: it is never given a second")
	}
	o.way, o.as = o.maker.Way(as), as
	if o.sockets != nil {
		if err := o.sockets.letOut(); err != nil {
			return starling.Errorf(starling.Unavailable, op, "%w", err)
		}
	}
	o.group = run.New(context.Background())
	if o.sockets != nil {
		o.group.Go(o.accept)
		o.group.Go(o.receive)
	}
	return nil
}

// Close ends every flow, takes everything out of the namespace and waits for the outlet's goroutines.
func (o *Outlet) Close() error {
	if o.way != nil {
		o.way.Close()
	}
	var errs []error
	if o.sockets != nil {
		errs = append(errs, o.sockets.deafen())
	}
	if o.group != nil {
		o.group.Stop() // its context's end aborts every flow
	}
	if o.sockets != nil {
		errs = append(errs, o.sockets.close())
	}
	return errors.Join(errs...)
}

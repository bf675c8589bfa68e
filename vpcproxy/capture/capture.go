// Package capture is the host's hand in a sandbox's network namespace: sockets to which every connection and datagram of the
// code inside comes, whatever it was for, and the way back. The code needs to know nothing of it. It is the only importer of
// the libraries for BPF and routes.
package capture

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"starling"
	"starling/internal/run"
	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/netns"
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
	// Close ends the way; no flow is begun after it.
	Close()
}

// A Maker makes the outlets of one host.
type Maker struct {
	// Way returns where the flows of an attachment go.
	Way func(starling.Attachment) Way
	Log *slog.Logger
}

// An Outlet is what lies in the network namespace of one sandbox. Prepare makes it, Connect lets the code inside out, Close ends
// it. It has two goroutines from Connect on, two for each flow, and Close waits for all.
type Outlet struct {
	maker   *Maker
	ns      *os.File
	tcp     *net.TCPListener
	udp     *net.UDPConn
	routes  *netlink.Handle
	program *program
	group   *run.Group
	way     Way
	as      starling.Attachment // from Connect on
	conns   atomic.Int64

	mu      sync.Mutex // guards what follows
	flows   map[pair]*dgrams
	answers map[netip.AddrPort]*answerer
	told    time.Time // when a denied flow was last written down
}

// Prepare puts into a namespace what lets code out later. Until Connect the code notices nothing: there is no route, and nothing
// listens. It owns ns, also when it fails.
func (m *Maker) Prepare(ns *os.File) (*Outlet, error) {
	o := &Outlet{maker: m, ns: ns, flows: map[pair]*dgrams{}, answers: map[netip.AddrPort]*answerer{}}
	err := o.prepare()
	if err != nil {
		return nil, errors.Join(starling.Errorf(starling.Unavailable, "prepare sandbox's network", "%w", err), o.Close())
	}
	return o, nil
}

func (o *Outlet) prepare() (err error) {
	if netns.IsHome(o.ns) {
		return errors.New("it has the host's network namespace")
	}
	if o.tcp, o.udp, err = listen(o.ns); err != nil {
		return err
	}
	if o.routes, err = router(o.ns); err != nil {
		return err
	}
	o.program, err = load(o.ns)
	return err
}

// Connect lets the code inside out as an attachment, from now on. Once only.
func (o *Outlet) Connect(as starling.Attachment) error {
	const op = "connect sandbox"
	if o.way != nil {
		return starling.Errorf(starling.Invalid, op, "it has a network: it is never given a second")
	}
	o.way, o.as = o.maker.Way(as), as
	err := o.program.steer(o.tcp, o.udp)
	if err == nil {
		err = letOut(o.routes)
	}
	if err != nil {
		return starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	o.group = run.New(context.Background())
	o.group.Go(o.accept)
	o.group.Go(o.receive)
	return nil
}

// Close ends every flow, takes everything out of the namespace and waits for the outlet's goroutines.
func (o *Outlet) Close() error {
	if o.way != nil {
		o.way.Close()
	}
	var errs []error
	if o.tcp != nil {
		errs = append(errs, o.tcp.Close(), o.udp.Close())
	}
	if o.group != nil {
		o.group.Stop() // its context's end aborts every flow
	}
	if o.program != nil {
		errs = append(errs, o.program.close())
	}
	if o.routes != nil {
		o.routes.Close()
	}
	errs = append(errs, o.ns.Close())
	return errors.Join(errs...)
}

// Supported says what this machine lacks to capture; nil for nothing. It makes a namespace and forgets it.
func Supported() error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	o, err := (&Maker{Log: slog.New(slog.DiscardHandler)}).Prepare(ns)
	if err != nil {
		return err
	}
	return o.Close()
}

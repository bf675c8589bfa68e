package vmpool

import (
	"io"
	"net/netip"
	"os"

	"starling"
)

// A Plug is what lies ready in a sandbox's network namespace to let its code out. Until Connect the code notices nothing of it.
type Plug interface {
	// Connect lets the code out as an instance in its network. It is called before there is code, once, and takes microseconds.
	Connect(as starling.Attachment) error
	// Close ends every flow and takes everything out of the namespace.
	Close() error
}

// A Namespaced is a Sandbox whose code's sockets are the host kernel's, in a network namespace of their own.
type Namespaced interface {
	// Namespace returns the sandbox's network namespace; the file is the caller's.
	Namespace() (*os.File, error)
}

// A Catching is a Sandbox with a kernel of its own, which catches what its code sends out.
type Catching interface {
	// Catch has the kernel catch from Attach on, and c given what it caught. Before Attach, once; without it nothing gets out.
	Catch(c Catcher)
	// Answer sends a datagram as an address to another inside. It may wait until the sandbox is closed.
	Answer(as, to netip.AddrPort, d []byte)
}

// A Catcher takes what a sandbox caught. Whose it is follows from the sandbox; the rest is the guest's word.
type Catcher interface {
	// Flow takes one connection that was made to an address. It does not wait, and owns f.
	Flow(to netip.AddrPort, f Flow)
	// Datagram takes one datagram. It does not wait, and does not keep d.
	Datagram(from, to netip.AddrPort, d []byte)
}

// A Flow is the host's end of a connection of the code inside. Read and Write may be used by one goroutine each at the same time.
type Flow interface {
	io.ReadWriter
	CloseWrite() error
	Abort() // resets the connection
	Close() error
}

// A GuestPlug is the plug of a Catching sandbox.
type GuestPlug interface {
	Plug
	Catcher
}

// plug prepares a sandbox's network; nil when it can have none, and serves all versions without.
func (p *Pool) plug(sb Sandbox) Plug {
	n, ok := sb.(Namespaced)
	if p.cfg.Plug == nil || !ok {
		return nil
	}
	ns, err := n.Namespace()
	if err == nil {
		var plug Plug
		if plug, err = p.cfg.Plug(ns); err == nil {
			return plug
		}
	}
	p.cfg.Log.Warn("a sandbox can have no network", "error", err)
	return nil
}

// connect lets the code of an instance out if its version has a network.
func (i *Instance) connect() error {
	v := i.cfg.Version
	if v.Config.Network == starling.NoNetwork {
		return nil
	}
	as := starling.Attachment{Instance: i.cfg.ID, Function: v.Function, Version: v.ID, Network: v.Config.Network}
	if c, ok := i.sandbox.(Catching); ok && i.pool.cfg.PlugGuest != nil {
		plug := i.pool.cfg.PlugGuest(c.Answer)
		i.plug, i.guest = plug, true
		if err := plug.Connect(as); err != nil {
			return err
		}
		c.Catch(plug)
		return nil
	}
	if i.plug == nil {
		i.plug = i.pool.plug(i.sandbox)
	}
	if i.plug == nil {
		return starling.Errorf(starling.Unavailable, "start instance", "sandboxes of this host have no networks, and the version has network %q", v.Config.Network).With("NoNetwork")
	}
	return i.plug.Connect(as)
}

// shed takes out what was prepared for a network that the version does not have: up to six descriptors of the node.
func (i *Instance) shed() {
	if i.cfg.Version.Config.Network == starling.NoNetwork {
		i.unplug(false)
		i.plug = nil
	}
}

// unplug ends every flow: of a namespace before the sandbox is closed, of a guest after it, because who waits for a guest that takes
// nothing is freed by its end.
func (i *Instance) unplug(sandboxClosed bool) {
	if i.plug == nil || i.guest != sandboxClosed {
		return
	}
	if err := i.plug.Close(); err != nil {
		i.cfg.Log.Error("close sandbox's network", "instance", i.cfg.ID, "error", err)
	}
}

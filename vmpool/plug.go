package vmpool

import (
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
	if i.plug == nil {
		i.plug = i.pool.plug(i.sandbox)
	}
	if i.plug == nil {
		return starling.Errorf(starling.Unavailable, "start instance", "sandboxes of this host have no networks, and the version has network %q", v.Config.Network).With("NoNetwork")
	}
	return i.plug.Connect(starling.Attachment{Instance: i.cfg.ID, Function: v.Function, Version: v.ID, Network: v.Config.Network})
}

// shed takes out what was prepared for a network that the version does not have: six descriptors of the node.
func (i *Instance) shed() {
	if i.cfg.Version.Config.Network == starling.NoNetwork {
		i.unplug()
		i.plug = nil
	}
}

// unplug ends every flow before the sandbox is closed.
func (i *Instance) unplug() {
	if i.plug == nil {
		return
	}
	if err := i.plug.Close(); err != nil {
		i.cfg.Log.Error("close sandbox's network", "instance", i.cfg.ID, "error", err)
	}
}

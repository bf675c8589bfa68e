package plugboard

import (
	"errors"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/uplink"
)

// A Plug is one network that is plugged in. Board.Pull ends it.
type Plug struct {
	board  *Board
	uplink uplink.Uplink
	ns     *os.File
	name   string   // "" for a namespace of the operator
	use    *os.File // the record, locked for as long as the process lives
}

// Namespace is where the network's sockets are made; it is closed by Board.Pull.
func (p *Plug) Namespace() *os.File { return p.ns }

// Where names the namespace for people.
func (p *Plug) Where() string {
	if p.name == "" {
		return p.uplink.Path()
	}
	return filepath.Join(p.board.Namespaces, p.name)
}

// Plug plugs a network in. The error says what is missing: Unavailable what may come (a device, a namespace, a module of the kernel), Conflict what somebody else
// has, Invalid what the operator must change. After an error nothing of it is left.
func (b *Board) Plug(ref starling.NetworkRef, u uplink.Uplink) (*Plug, error) {
	const op = "plug network in"
	if u.Kind() == uplink.Namespace {
		ns, err := netns.Open(u.Path())
		if err != nil {
			return nil, starling.Errorf(starling.Unavailable, op, "%w", err)
		}
		return &Plug{board: b, uplink: u, ns: ns}, nil
	}
	guard, err := b.guard()
	if err != nil {
		return nil, starling.Errorf(starling.Internal, op, "%w", err)
	}
	defer guard.Close()
	name, err := b.name(ref)
	if err != nil {
		return nil, starling.Errorf(starling.Internal, op, "%w", err)
	}
	f, used, err := b.open(name)
	if err != nil {
		return nil, starling.Errorf(starling.Internal, op, "%w", err)
	}
	p := &Plug{board: b, uplink: u, name: name, use: f}
	if used {
		err = p.share()
	} else {
		err = p.make(ref)
	}
	if err == nil {
		err = flock(f, unix.LOCK_SH)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// share finds what another gateway of this machine has plugged in.
func (p *Plug) share() (err error) {
	const op = "plug network in"
	r, err := read(p.use)
	if err == nil && r == nil {
		err = errors.New("it is not whole")
	}
	if err != nil {
		return starling.Errorf(starling.Internal, op, "the record of another gateway on this machine cannot be read: %w", err)
	}
	if !uplink.Same(r.Uplink, p.uplink) {
		return starling.Errorf(starling.Conflict, op, "another gateway on this machine has the network plugged in otherwise, by %s: give both the same file, or end that one", r.Uplink)
	}
	if p.ns, err = netns.Open(filepath.Join(p.board.Namespaces, p.name)); err != nil {
		return starling.Errorf(starling.Internal, op, "the namespace of another gateway on this machine: %w", err)
	}
	return nil
}

// make makes the network's namespace with its device, after taking away what a killed gateway has left of it.
func (p *Plug) make(ref starling.NetworkRef) error {
	const op = "plug network in"
	b := p.board
	if _, err := b.clear(p.use, p.name); err != nil {
		return starling.Errorf(starling.Internal, op, "take away what was left: %w", err)
	}
	on, err := b.find(p.uplink)
	if err != nil {
		return errors.Join(err, os.Remove(p.use.Name()))
	}
	r := &record{Network: ref, Uplink: p.uplink, Device: on.lent}
	if err = r.write(p.use); err == nil {
		p.ns, err = b.show(p.name)
	}
	if err == nil {
		err = netns.Do(p.ns, func() error { return shut(p.uplink) })
	}
	if err == nil {
		err = b.connect(p.ns, p.name, p.uplink, on)
	}
	if err == nil {
		err = furnish(p.ns, p.uplink)
	}
	if err == nil {
		return nil
	}
	if p.ns != nil {
		p.ns.Close()
	}
	if left := b.unmake(p.name, r); left != nil { // the record stays, for the next to take it away
		return errors.Join(err, starling.Errorf(starling.Internal, op, "take it away again: %w", left))
	}
	return errors.Join(err, os.Remove(p.use.Name()))
}

// Pull ends the use of networks. What no other gateway of the machine uses is taken away, and the operator's devices are given back.
func (b *Board) Pull(plugs ...*Plug) error {
	var errs []error
	var names []string
	for _, p := range plugs {
		errs = append(errs, p.ns.Close())
		if p.name != "" {
			names = append(names, p.name)
		}
	}
	if len(names) == 0 {
		return errors.Join(errs...)
	}
	guard, err := b.guard()
	if err == nil {
		defer guard.Close()
	}
	errs = append(errs, err)
	for _, p := range plugs {
		if p.use != nil {
			errs = append(errs, p.use.Close())
		}
	}
	if err == nil {
		_, err = b.sweep(names)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return starling.Errorf(starling.Internal, "pull networks out", "%w", err)
	}
	return nil
}

// Check looks whether the device is where it was put. A device that is there and hears no other end is no error: carrier says so. Of a
// namespace of the operator nothing is known.
func (p *Plug) Check() (carrier bool, err error) {
	if p.name == "" {
		return true, nil
	}
	err = netns.Do(p.ns, func() error {
		link, err := netlink.LinkByName(within(p.uplink))
		if absent(err) {
			return starling.Errorf(starling.Unavailable, "look at uplink", "%s has gone from its namespace", p.uplink)
		}
		if err == nil {
			carrier = link.Attrs().Flags&net.FlagRunning != 0
		}
		return err
	})
	return carrier, err
}

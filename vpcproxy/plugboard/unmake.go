package plugboard

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/uplink"
)

// unmake takes away what there is of what r tells.
func (b *Board) unmake(name string, r *record) error {
	var err error
	switch r.Uplink.Kind() {
	case uplink.Bridge:
		err = netns.Do(b.Home, func() error { return remove(port(name)) })
	case uplink.Device:
		err = b.giveBack(name, r)
	default:
		err = b.inNamed(name, func() error { return remove(inside) })
	}
	if err != nil {
		return err
	}
	return b.hide(name)
}

// remove deletes a device, when there is one, in the namespace of the calling thread.
func remove(name string) error {
	link, err := netlink.LinkByName(name)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// inNamed runs f in the board's namespace of a name, when there is one.
func (b *Board) inNamed(name string, f func() error) error {
	ns, err := netns.Open(filepath.Join(b.Namespaces, name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, netns.ErrNone) {
		return nil // it was never mounted; of another error it may be, with the operator's device in it
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Do(ns, f)
}

// giveBack moves the operator's device to where it came from, as it was there.
func (b *Board) giveBack(name string, r *record) error {
	moved := false
	err := b.inNamed(name, func() error {
		link, err := netlink.LinkByName(r.Uplink.Device)
		if absent(err) {
			return nil
		}
		if err == nil {
			err = netlink.LinkSetDown(link)
		}
		if err == nil && r.Device != nil && link.Attrs().MTU != r.Device.MTU {
			err = netlink.LinkSetMTU(link, r.Device.MTU)
		}
		if err == nil {
			err = netlink.LinkSetNsFd(link, int(b.Home.Fd()))
		}
		moved = err == nil
		return err
	})
	if err != nil {
		return starling.Errorf(starling.Internal, "give device back", "%s: %w", r.Uplink.Device, err)
	}
	if !moved || r.Device == nil || !r.Device.Up {
		return nil
	}
	return netns.Do(b.Home, func() error {
		link, err := netlink.LinkByName(r.Uplink.Device)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

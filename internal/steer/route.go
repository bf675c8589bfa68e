package steer

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// loopback is the index of lo in every namespace.
const loopback = 1

// A Router is what the route out of one namespace is made over.
type Router struct{ routes kernel }

// OpenRouter opens the router of the caller's namespace.
func OpenRouter() (*Router, error) {
	k, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open routes: %w", err)
	}
	return &Router{k}, nil
}

// Close closes the router; its route stays. A second Close fails and does no harm.
func (r *Router) Close() error { return r.routes.close() }

// LetOut makes every IPv4 address one of lo's own, so that what is sent to it arrives there, from 127.0.0.1, and is steered. lo must be up.
func (r *Router) LetOut() error {
	// struct rtmsg of a destination of no bits
	everywhere := []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}
	err := r.routes.ask(message(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, everywhere,
		attribute(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, loopback)),
		attribute(unix.RTA_PREFSRC, Resolver.Addr().AsSlice())))
	if err != nil {
		return fmt.Errorf("add route: %w", err)
	}
	return nil
}

// Raise brings lo up.
func (r *Router) Raise() error {
	// struct ifinfomsg; the last word says which of the flags are meant
	up := binary.NativeEndian.AppendUint32(make([]byte, 4), loopback)
	up = binary.NativeEndian.AppendUint32(up, unix.IFF_UP)
	up = binary.NativeEndian.AppendUint32(up, unix.IFF_UP)
	if err := r.routes.ask(message(unix.RTM_NEWLINK, unix.NLM_F_ACK, up)); err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	return nil
}

package capture

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"starling/vpcproxy/netns"
)

const (
	hostPort = 1 // of the host's sockets: nothing without privileges can want it, and the program refuses whoever connects to it
	dnsPort  = 53
)

// Resolver is where the code inside asks for names.
var Resolver = net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: dnsPort}

// listen makes the host's two sockets in a namespace.
func listen(ns *os.File) (tcp *net.TCPListener, udp *net.UDPConn, err error) {
	err = netns.Do(ns, func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // a map of sockets takes no others
		l, err := lc.Listen(context.Background(), "tcp4", fmt.Sprintf("127.0.0.1:%d", hostPort))
		if err != nil {
			return err
		}
		tcp = l.(*net.TCPListener)
		lc = net.ListenConfig{Control: option(unix.SOL_IP, unix.IP_RECVORIGDSTADDR)}
		pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("127.0.0.1:%d", hostPort))
		if err != nil {
			tcp.Close()
			return err
		}
		udp = pc.(*net.UDPConn)
		return nil
	})
	return tcp, udp, err
}

// answering makes a socket in a namespace that sends as addr, which any address is once letOut was called.
func answering(ns *os.File, addr netip.AddrPort) (udp *net.UDPConn, err error) {
	err = netns.Do(ns, func() error {
		lc := net.ListenConfig{Control: option(unix.SOL_SOCKET, unix.SO_REUSEADDR)}
		pc, err := lc.ListenPacket(context.Background(), "udp4", addr.String())
		if err != nil {
			return err
		}
		udp = pc.(*net.UDPConn)
		return nil
	})
	return udp, err
}

func option(level, name int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, rc syscall.RawConn) (err error) {
		if ctl := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, 1) }); ctl != nil {
			return ctl
		}
		return err
	}
}

// router opens what routes are made over in a namespace.
func router(ns *os.File) (h *netlink.Handle, err error) {
	err = netns.Do(ns, func() error {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// loopback is the index of lo in every namespace.
const loopback = 1

// letOut makes every IPv4 address one of lo's own, so that what is sent to it arrives, from 127.0.0.1, at the program.
func letOut(h *netlink.Handle) error {
	everywhere := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	err := h.RouteAdd(&netlink.Route{LinkIndex: loopback, Dst: everywhere, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Src: Resolver.IP, Table: unix.RT_TABLE_MAIN})
	if err != nil {
		return fmt.Errorf("add route: %w", err)
	}
	return nil
}

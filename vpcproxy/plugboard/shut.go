package plugboard

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"starling/vpcproxy/uplink"
)

// shut makes the namespace of the calling thread one that forwards nothing, whatever this machine does, and takes no addresses or ways that were not
// written down. A kernel without IPv6 has none to forbid.
func shut(u uplink.Uplink) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		return err
	}
	settings := map[string]string{"forwarding": "0", "accept_ra": "0", "accept_redirects": "0", "disable_ipv6": "1"}
	if slices.ContainsFunc(u.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		settings["disable_ipv6"] = "0"
	}
	for _, where := range []string{"all", "default"} {
		for key, value := range settings {
			if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", where, key), []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv4/conf", where, "accept_redirects"), []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

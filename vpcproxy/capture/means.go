package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"starling"
	"starling/vpcproxy/netns"
)

// Means are what the host's kernel hands over with what code in a namespace sends out.
type Means string

// The means there are, the best first.
const (
	Lookup Means = "lookup" // a BPF program in the lookup of sockets (sk_lookup)
	TPROXY Means = "tproxy" // rules of nftables
)

// Auto chooses the first that works.
const Auto = "auto"

var all = []Means{Lookup, TPROXY}

// String says for people what m is.
func (m Means) String() string {
	if m == TPROXY {
		return "nftables TPROXY"
	}
	return "BPF sk_lookup"
}

// parse returns the means that a setting allows.
func parse(setting string) ([]Means, error) {
	if setting == "" || setting == Auto {
		return all, nil
	}
	for _, m := range all {
		if setting == string(m) {
			return []Means{m}, nil
		}
	}
	return nil, starling.Errorf(starling.Invalid, "choose capture", "%q: use auto, lookup or tproxy", setting)
}

// Valid says what is wrong with a setting for [Choose].
func Valid(setting string) error {
	_, err := parse(setting)
	return err
}

// Choose returns the first means that a setting allows and that work on this machine, which is tried. The setting is one of them or
// auto, as is the empty one. When none works the error says of each why.
func Choose(setting string) (Means, error) { return choose(setting, Means.Try) }

func choose(setting string, try func(Means) error) (Means, error) {
	may, err := parse(setting)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, m := range may {
		err := try(m)
		if err == nil {
			return m, nil
		}
		missing = append(missing, fmt.Sprintf("%s: %v", m, err))
	}
	return "", starling.Errorf(starling.Unavailable, "choose capture", "%s", strings.Join(missing, "; "))
}

// tryTime is how long a connection of a trial, which stays on this machine, may take.
const tryTime = 2 * time.Second

// Try says what this machine lacks to capture by m; nil for nothing. It catches a connection in a namespace that it makes and forgets.
func (m Means) Try() error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	s := &sockets{ns: ns}
	return errors.Join(s.try(m, ns), s.deafen(), s.close())
}

func (s *sockets) try(m Means, ns *os.File) error {
	if err := s.prepare(m); err != nil {
		return err
	}
	if err := s.routes.Raise(); err != nil {
		return err
	}
	if err := s.letOut(); err != nil {
		return err
	}
	c, err := netns.Dial(ns, "tcp", netip.Addr{}, netip.MustParseAddrPort("192.0.2.1:80"), tryTime)
	if err != nil {
		return fmt.Errorf("a connection is not caught: %w", err)
	}
	return c.Close()
}

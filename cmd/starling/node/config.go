// Package node opens the parts of one node in order and closes them in reverse. It holds no policy: what it
// knows is which part needs which.
package node

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"starling"
	"starling/vpcproxy/capture"
)

// Config is what an operator says of one node. Dir, Listen and Roles are required.
type Config struct {
	Dir       string // everything the node keeps
	Name      string // for people; the host name when empty
	Listen    string // host:port of the QUIC endpoint
	Advertise string // host:port under which other nodes reach it; Listen when empty
	HTTP      string // host:port of the bridge (role frontend)
	TLSCert   string // certificate file of the bridge; with TLSKey it serves HTTPS, HTTP/2 and HTTP/3
	TLSKey    string
	Admin     string // host:port of metrics, health and profiles
	Roles     starling.Roles
	Zone      starling.Zone

	Bucket       string        // where code is kept: file:///folder or s3://name; a folder in Dir when empty
	CodeCacheMiB int           // unpacked code kept on this host
	MemoryMiB    int           // what instances may claim on this host; 80 % of the machine when 0
	InstanceMax  int           // instances on this host at once
	Pool         int           // warm sandboxes kept for each runtime
	Awake        time.Duration // how long idle cores stay awake from a start on; 0 for never
	Python, Node string        // interpreters
	Guest        string        // the starling-guest binary; beside this binary when empty

	Isolations   starling.Isolations // that this host gives; process when 0
	Runsc        string              // gVisor's binary; beside this binary or in PATH when empty
	PoolStrong   int                 // warm sandboxes kept for each runtime of every isolation but process, at most Pool
	SharedKernel bool                // functions of several accounts may share this host's kernel
	Uplinks      string              // file that plugs a gateway into networks (role gateway)
	Handover     string              // directory in which the gateways of this machine find each other; "" for none
	Capture      string              // what catches connections in isolation process: lookup, tproxy, or auto and "" for the first that works
	KataImages   string              // folder of what microVMs boot; the user's cache when empty
	KataMemory   int                 // MiB of the largest function in a microVM; the driver's own when 0

	Record  string // folder to record calls to (role frontend); empty to record none
	Scaling string // file with settings of the scaling policy (role scheduler); the defaults when empty
	Audit   string // file to write down what is granted and accepted, for checkers of tests; empty for none

	Drain time.Duration // longest wait for calls in flight when closing
	Log   *slog.Logger
}

// Validate reports the first setting that cannot work, by its flag's name.
func (c Config) Validate() error {
	const op = "check node settings"
	if c.Dir == "" {
		return starling.Errorf(starling.Invalid, op, "--data is empty: name a folder for what the node keeps")
	}
	if c.Roles == 0 {
		return starling.Errorf(starling.Invalid, op, "--roles is empty: use manager, frontend, scheduler, host or all")
	}
	for flag, addr := range map[string]string{"listen": c.Listen, "advertise": c.advertise(), "admin": c.Admin, "http": c.HTTP} {
		if _, _, err := net.SplitHostPort(addr); err != nil && addr != "" {
			return starling.Errorf(starling.Invalid, op, "--%s %q: use host:port", flag, addr)
		}
	}
	host, _, _ := net.SplitHostPort(c.advertise())
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return starling.Errorf(starling.Invalid, op, "--listen %s is every address of this machine: say with --advertise host:port how other nodes reach it", c.Listen)
	}
	if c.Roles.Has(starling.RoleFrontend) && c.HTTP == "" {
		return starling.Errorf(starling.Invalid, op, "--http is empty and the node is a frontend")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return starling.Errorf(starling.Invalid, op, "--tls-cert and --tls-key go together")
	}
	if c.Pool < 0 || c.Pool > 1000 {
		return starling.Errorf(starling.Invalid, op, "--pool %d: use 0-1000", c.Pool)
	}
	if c.Awake < 0 || c.Awake > time.Second {
		return starling.Errorf(starling.Invalid, op, "--awake %v: use 0 to 1s", c.Awake)
	}
	if err := capture.Valid(c.Capture); err != nil {
		return starling.Errorf(starling.Invalid, op, "--capture: %w", err)
	}
	return nil
}

func (c Config) isolations() starling.Isolations {
	if c.Isolations == 0 {
		return starling.OnlyProcess
	}
	return c.Isolations
}

func (c Config) advertise() string {
	if c.Advertise != "" {
		return c.Advertise
	}
	return c.Listen
}

func (c Config) name() string {
	if c.Name != "" {
		return c.Name
	}
	name, err := os.Hostname()
	if err != nil {
		return "node"
	}
	return name
}

// guest returns the path of starling-guest, which lies beside this binary unless it is named.
func (c Config) guest() (string, error) {
	path := c.Guest
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), "starling-guest")
	}
	if _, err := os.Stat(path); err != nil {
		return "", starling.Errorf(starling.Invalid, "open host", "starling-guest is not at %s: put it beside the starling binary (\"make build\" makes both): %w", path, err)
	}
	return filepath.Abs(path)
}

// memoryMiB returns what instances may claim: the setting, or 80 % of the machine.
func (c Config) memoryMiB() int {
	if c.MemoryMiB > 0 {
		return c.MemoryMiB
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 1024
	}
	for line := range strings.Lines(string(text)) {
		if kib, ok := kibibytes(line, "MemTotal:"); ok {
			return kib / 1024 * 8 / 10
		}
	}
	return 1024
}

func kibibytes(line, name string) (n int, ok bool) {
	f := strings.Fields(line)
	if len(f) < 2 || f[0] != name {
		return 0, false
	}
	for _, d := range f[1] {
		n = n*10 + int(d-'0')
	}
	return n, true
}

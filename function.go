package starling

import (
	"encoding/hex"
	"path"
	"regexp"
	"strings"
	"time"
)

// A Runtime names what runs a function's code inside a sandbox.
type Runtime string

const (
	Python311 Runtime = "python3.11" // handler "module.function"
	NodeJS20  Runtime = "nodejs20"   // handler "module.export"
	Provided  Runtime = "provided"   // an executable "bootstrap" speaks the Lambda Runtime API
)

// Runtimes lists the shipped runtimes in the order people see them.
var Runtimes = []Runtime{Python311, NodeJS20, Provided}

// Validate reports whether r is shipped.
func (r Runtime) Validate() error {
	for _, k := range Runtimes {
		if r == k {
			return nil
		}
	}
	return Errorf(Invalid, "check runtime", "%q is no runtime: use python3.11, nodejs20 or provided", string(r)).With("UnknownRuntime")
}

// A CodeHash is the lower-case hex SHA-256 of an uploaded zip: code is content-addressed.
type CodeHash string

// Validate reports whether h could name a package.
func (h CodeHash) Validate() error {
	if raw, err := hex.DecodeString(string(h)); err != nil || len(raw) != 32 || hex.EncodeToString(raw) != string(h) {
		return Errorf(Invalid, "check code", "code %q is no lower-case hexadecimal SHA-256: upload the package first", h)
	}
	return nil
}

// An Account is a tenant: it owns functions and keys, and bounds what they use.
type Account struct {
	ID             AccountID `cbor:"1,keyasint" json:"id"`
	ConcurrencyMax int       `cbor:"2,keyasint" json:"concurrencyMax"` // calls in flight at once, over all functions
	Created        int64     `cbor:"3,keyasint" json:"created"`        // Unix seconds, from the proposing node

	// What the operator says of its functions' isolation. Absent where nothing is said, so that such an account is the same
	// bytes as an older release's.
	Isolation      Isolation `cbor:"4,keyasint,omitempty" json:"isolation,omitempty"`      // of functions that do not say
	IsolationLeast Isolation `cbor:"5,keyasint,omitempty" json:"isolationLeast,omitempty"` // no function may have less
}

// A Role of an API key.
type KeyRole string

const (
	KeyAdmin KeyRole = "admin" // accounts, keys, nodes, partitions
	KeyUser  KeyRole = "user"  // the functions of its own account
)

// A Key is an API key as the cluster remembers it: the secret itself is never stored.
type Key struct {
	Hash    [32]byte  `cbor:"1,keyasint" json:"-"`  // SHA-256 of the whole bearer secret
	ID      string    `cbor:"2,keyasint" json:"id"` // first 8 characters of the secret's body, to name it in lists
	Account AccountID `cbor:"3,keyasint" json:"account"`
	Role    KeyRole   `cbor:"4,keyasint" json:"role"`
	Created int64     `cbor:"5,keyasint" json:"created"`
}

// Config is what a developer says of a function. Zero values mean the defaults of [Config.WithDefaults].
type Config struct {
	Runtime     Runtime           `cbor:"1,keyasint" json:"runtime" yaml:"runtime"`
	Handler     string            `cbor:"2,keyasint" json:"handler,omitempty" yaml:"handler"`
	MemoryMiB   int               `cbor:"3,keyasint" json:"memoryMiB,omitempty" yaml:"memoryMiB"`     // 128–10240
	TimeoutMS   int               `cbor:"4,keyasint" json:"timeoutMS,omitempty" yaml:"timeoutMS"`     // 1–900000
	Env         map[string]string `cbor:"5,keyasint" json:"env,omitempty" yaml:"env"`                 // ≤ 4 KiB in all
	Concurrency int               `cbor:"6,keyasint" json:"concurrency,omitempty" yaml:"concurrency"` // slots of one instance, 1–100; only provided may exceed 1
	InstanceMax int               `cbor:"7,keyasint" json:"instanceMax,omitempty" yaml:"instanceMax"` // concurrent instances; 0 = the account's limit
	Description string            `cbor:"8,keyasint" json:"description,omitempty" yaml:"description"` // ≤ 256 bytes
	Provisioned int               `cbor:"9,keyasint" json:"provisioned,omitempty" yaml:"provisioned"` // instances kept ready at all times, 0–1000
	Schedule    []Provision       `cbor:"10,keyasint" json:"schedule,omitempty" yaml:"schedule"`      // ≤ 32 lines; wins over Provisioned

	// Isolation is the developer's wish until the snapshot is made, and in a snapshot what was made of it. Absent for
	// process, so that such a snapshot is the same bytes as an older release's.
	Isolation Isolation `cbor:"11,keyasint,omitempty" json:"isolation,omitempty" yaml:"isolation"`

	// Layers lie under /opt, a later one over an earlier one, at most LayersMax. Absent where there are none, for the same reason.
	Layers []LayerRef `cbor:"12,keyasint,omitempty" json:"layers,omitempty" yaml:"layers"`

	// Network is what its instances may reach: nothing when empty ("none" in a wish), "internet", or a network of its account.
	Network NetworkName `cbor:"13,keyasint,omitempty" json:"network,omitempty" yaml:"network"`
}

// A Version is an immutable snapshot of a function: its configuration and code.
type Version struct {
	ID       VersionID     `cbor:"1,keyasint" json:"id"`
	Function FunctionRef   `cbor:"2,keyasint" json:"function"`
	Number   VersionNumber `cbor:"3,keyasint" json:"number"` // Latest for a snapshot that is not published
	Config   Config        `cbor:"4,keyasint" json:"config"`
	Code     CodeHash      `cbor:"5,keyasint" json:"code"`
	CodeSize int64         `cbor:"6,keyasint" json:"codeSize"` // bytes of the zip
	Created  int64         `cbor:"7,keyasint" json:"created"`  // Unix seconds

	// LayerCode is what Config.Layers are made of, in the same order: a host needs no more to show them.
	LayerCode []CodeHash `cbor:"8,keyasint,omitempty" json:"layerCode,omitempty"`
}

// Key returns the first key of the span of the version's function.
func (v *Version) Key() Key64 { return KeyOf(v.Function, 0) }

// Isolation returns what stands between the version and its host.
func (v *Version) Isolation() Isolation { return v.Config.Isolation.Or(IsolationProcess) }

// Timeout returns the longest run of one call.
func (v *Version) Timeout() time.Duration {
	return time.Duration(v.Config.TimeoutMS) * time.Millisecond
}

// A Function is a name with its latest snapshot and its published versions.
type Function struct {
	Ref      FunctionRef                 `cbor:"1,keyasint" json:"ref"`
	Latest   VersionID                   `cbor:"2,keyasint" json:"latest"`
	Versions map[VersionNumber]VersionID `cbor:"3,keyasint" json:"versions,omitempty"`
	Created  int64                       `cbor:"4,keyasint" json:"created"`
	Updated  int64                       `cbor:"5,keyasint" json:"updated"`
}

// WithDefaults returns c with every unset field set.
func (c Config) WithDefaults() Config {
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 128
	}
	if c.TimeoutMS == 0 {
		c.TimeoutMS = 3000
	}
	if c.Concurrency == 0 {
		c.Concurrency = 1
	}
	if c.Handler == "" {
		switch c.Runtime {
		case Python311:
			c.Handler = "main.handler"
		case NodeJS20:
			c.Handler = "index.handler"
		case Provided:
			c.Handler = "bootstrap"
		}
	}
	return c
}

var (
	handlerPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}$`)
	envPattern     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// Validate reports the first setting that cannot work, by its JSON name.
func (c Config) Validate() error {
	const op = "check function"
	if err := c.Runtime.Validate(); err != nil {
		return err
	}
	if !handlerPattern.MatchString(c.Handler) || path.Clean("/"+c.Handler) != "/"+c.Handler || strings.Contains(c.Handler, "..") {
		return Errorf(Invalid, op, "handler %q: use module.function inside the package", c.Handler)
	}
	if c.Runtime != Provided && !strings.Contains(path.Base(c.Handler), ".") {
		return Errorf(Invalid, op, "handler %q: use module.function", c.Handler)
	}
	if c.MemoryMiB < MemoryMinMiB || c.MemoryMiB > MemoryMaxMiB {
		return Errorf(Invalid, op, "memoryMiB %d: use %d-%d", c.MemoryMiB, MemoryMinMiB, MemoryMaxMiB)
	}
	if c.TimeoutMS < 1 || time.Duration(c.TimeoutMS)*time.Millisecond > CallTimeMax {
		return Errorf(Invalid, op, "timeoutMS %d: use 1-%d", c.TimeoutMS, CallTimeMax.Milliseconds())
	}
	if c.Concurrency < 1 || c.Concurrency > SlotsMax {
		return Errorf(Invalid, op, "concurrency %d: use 1-%d", c.Concurrency, SlotsMax)
	}
	if c.Concurrency > 1 && c.Runtime != Provided {
		return Errorf(Invalid, op, "concurrency %d: runtime %s serves one call at a time", c.Concurrency, c.Runtime)
	}
	if err := c.Isolation.Validate(); err != nil {
		return err
	}
	if err := c.Network.Validate(); err != nil {
		return err
	}
	if c.InstanceMax < 0 {
		return Errorf(Invalid, op, "instanceMax %d: use 0 or more", c.InstanceMax)
	}
	if len(c.Description) > DescriptionMax {
		return Errorf(Invalid, op, "description has %d bytes: use at most %d", len(c.Description), DescriptionMax)
	}
	if err := c.validateLayers(); err != nil {
		return err
	}
	if err := c.validateProvision(); err != nil {
		return err
	}
	return c.validateEnv()
}

func (c Config) validateEnv() error {
	size := 0
	for k, v := range c.Env {
		if !envPattern.MatchString(k) || strings.HasPrefix(k, "AWS_LAMBDA_") || k == "_HANDLER" {
			return Errorf(Invalid, "check function", "environment name %q: use letters, digits and \"_\"; AWS_LAMBDA_* and _HANDLER are ours", k)
		}
		if strings.IndexByte(v, 0) >= 0 {
			return Errorf(Invalid, "check function", "environment %s holds a NUL byte", k)
		}
		size += len(k) + len(v)
	}
	if size > EnvMax {
		return Errorf(Invalid, "check function", "environment has %d bytes: use at most %d", size, EnvMax)
	}
	return nil
}

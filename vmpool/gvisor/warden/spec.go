package warden

import (
	"encoding/json"
	"fmt"
	"os"

	"starling/vmpool/gvisor/inside"
	"starling/vmpool/process/jail"
)

// The part of an OCI bundle's configuration that runsc is told.
type (
	spec struct {
		Version  string      `json:"ociVersion"`
		Process  specProcess `json:"process"`
		Root     specRoot    `json:"root"`
		Hostname string      `json:"hostname"`
		Mounts   []specMount `json:"mounts"`
		Linux    specLinux   `json:"linux"`
	}
	specProcess struct {
		User            specUser        `json:"user"`
		Args            []string        `json:"args"`
		Env             []string        `json:"env"`
		Cwd             string          `json:"cwd"`
		NoNewPrivileges bool            `json:"noNewPrivileges"`
		Capabilities    map[string]caps `json:"capabilities"`
		Rlimits         []specLimit     `json:"rlimits"`
	}
	caps     []string
	specUser struct {
		UID int `json:"uid"`
		GID int `json:"gid"`
	}
	specLimit struct {
		Type string `json:"type"`
		Hard uint64 `json:"hard"`
		Soft uint64 `json:"soft"`
	}
	specRoot struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly"`
	}
	specMount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options,omitempty"`
	}
	specLinux struct {
		Namespaces  []specNamespace `json:"namespaces"`
		UIDMappings []specMapping   `json:"uidMappings"`
		GIDMappings []specMapping   `json:"gidMappings"`
	}
	specNamespace struct {
		Type string `json:"type"`
	}
	specMapping struct {
		Container uint32 `json:"containerID"`
		Host      uint32 `json:"hostID"`
		Size      uint32 `json:"size"`
	}
)

// guestCapabilities are what the first process has in the kernel of its sandbox, until it gives them up: to mount, and to
// become the function's user. In the host's kernel they are nothing.
var guestCapabilities = caps{"CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"}

// writeBundle writes the configuration of a box whose first process is to obey the orders.
func (w *warden) writeBundle(b *box, o inside.Orders) error {
	orders, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode orders: %w", err)
	}
	ids := []specMapping{{0, b.UID, 1}, {jail.User, b.UID + 1, 1}}
	s := spec{Version: "1.0.2", Hostname: "starling",
		Process: specProcess{Args: []string{inside.Program, "gvisor-init", string(orders)}, Env: []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=8MiB"}, Cwd: "/",
			NoNewPrivileges: true, Capabilities: map[string]caps{"bounding": guestCapabilities, "effective": guestCapabilities, "permitted": guestCapabilities},
			Rlimits: []specLimit{{"RLIMIT_NOFILE", w.setup.Jail.Files, w.setup.Jail.Files}, {"RLIMIT_CORE", 0, 0}}},
		Root: specRoot{Path: rootDir, Readonly: true},
		Mounts: []specMount{{"/proc", "proc", "proc", []string{"nosuid", "noexec", "nodev"}},
			// A mount that the warden makes below the folder later appears in the sandbox, too.
			{"/var", "bind", b.at("var"), []string{"rbind", "rslave", "ro", "nosuid", "nodev"}}},
		Linux: specLinux{UIDMappings: ids, GIDMappings: ids}}
	for _, n := range []string{"pid", "network", "ipc", "uts", "mount", "user"} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specNamespace{n})
	}
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode bundle: %w", err)
	}
	return os.WriteFile(b.at("config.json"), text, 0o644)
}

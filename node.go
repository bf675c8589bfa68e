package starling

import "strings"

// Roles is a set of what a node does.
type Roles uint8

const (
	RoleManager Roles = 1 << iota
	RoleFrontend
	RoleScheduler
	RoleHost
	RoleGateway
)

// AllRoles is what "starling up" runs.
const AllRoles = RoleManager | RoleFrontend | RoleScheduler | RoleHost

var roleNames = []struct {
	role Roles
	name string
}{{RoleManager, "manager"}, {RoleFrontend, "frontend"}, {RoleScheduler, "scheduler"}, {RoleHost, "host"}, {RoleGateway, "gateway"}}

// Has reports whether every role of other is in r.
func (r Roles) Has(other Roles) bool { return r&other == other }

// String returns the roles as "manager,host".
func (r Roles) String() string {
	var names []string
	for _, n := range roleNames {
		if r.Has(n.role) {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// ParseRoles reads "manager,host" or "all".
func ParseRoles(s string) (Roles, error) {
	var r Roles
next:
	for _, w := range strings.Split(s, ",") {
		w = strings.TrimSpace(w)
		if w == "all" {
			r |= AllRoles
			continue
		}
		for _, n := range roleNames {
			if n.name == w {
				r |= n.role
				continue next
			}
		}
		return 0, Errorf(Invalid, "parse roles", "%q is no role: use manager, frontend, scheduler, host, gateway or all", w)
	}
	return r, nil
}

// A Node is a member of the cluster as all nodes agree on it.
type Node struct {
	ID      NodeID `cbor:"1,keyasint" json:"id"`
	Name    string `cbor:"2,keyasint" json:"name"`
	Addr    string `cbor:"3,keyasint" json:"addr"` // host:port of its QUIC endpoint
	Roles   Roles  `cbor:"4,keyasint" json:"roles"`
	Zone    Zone   `cbor:"5,keyasint" json:"zone,omitempty"`
	HTTP    string `cbor:"6,keyasint" json:"http,omitempty"`    // host:port of its bridge, for people
	Replica uint64 `cbor:"7,keyasint" json:"replica,omitempty"` // its Raft replica id; 0 for none, never reused
	Joined  int64  `cbor:"8,keyasint" json:"joined"`

	// Draining is the operator's word that the node is to be emptied. It is absent where it is not set, so that a state
	// that never drained a node is the same bytes as an older release's.
	Draining bool `cbor:"9,keyasint,omitempty" json:"draining,omitempty"`
}

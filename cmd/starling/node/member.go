package node

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/identity"
	"starling/frontend/auth"
	"starling/internal/durable"
	"starling/transport/quic"
)

// A membership is what a node must remember beside its identity to find its cluster again.
type membership struct {
	Replica   uint64            `json:"replica"`             // its Raft replica; 0 for none
	Managers  []string          `json:"managers"`            // addresses to ask first
	Replicas  map[uint64]string `json:"replicas,omitempty"`  // addresses of the Raft replicas when it joined
	Bootstrap *bootstrap        `json:"bootstrap,omitempty"` // the first node's, until the cluster holds it
	Restore   bool              `json:"restore,omitempty"`   // the first node of a restored cluster: its state is not in the log yet
	Started   bool              `json:"started,omitempty"`   // the replica may have voted: without its log it must not come back
}

// A bootstrap is what the first node proposes when its cluster has no state yet. Keys are hashes here.
type bootstrap struct {
	Cluster    string             `json:"cluster"`
	Partitions int                `json:"partitions"`
	Account    starling.AccountID `json:"account"`
	Keys       []bootstrapKey     `json:"keys"`
}

// A bootstrapKey is a starling.Key with its hash, which that type's own JSON hides.
type bootstrapKey struct {
	starling.Key
	Hash []byte `json:"hash"`
}

// Made is what a new cluster shows its maker, once.
type Made struct {
	Cluster     string             `json:"cluster"`
	Account     starling.AccountID `json:"account"`
	Key         string             `json:"key"`         // of a user of the account
	AdminKey    string             `json:"adminKey"`    // of the operator
	Fingerprint string             `json:"fingerprint"` // SHA-256 of the cluster's CA certificate
}

// Exists reports whether dir belongs to a node already.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "member.json"))
	return err == nil
}

// Init makes a new cluster in c.Dir: its CA, the identity of its first node and its first keys. The cluster comes
// to life when that node is opened. Conflict when the folder holds a node already.
func Init(c Config, name string, partitions int) (Made, error) {
	const op = "create cluster"
	made := Made{Cluster: name, Account: "default"}
	if err := c.Validate(); err != nil {
		return made, err
	}
	if !c.Roles.Has(starling.RoleManager) {
		return made, starling.Errorf(starling.Invalid, op, "--roles %s: the first node is a manager", c.Roles)
	}
	if partitions < 1 || partitions > starling.PartitionMax {
		return made, starling.Errorf(starling.Invalid, op, "--partitions %d: use 1-%d", partitions, starling.PartitionMax)
	}
	if Exists(c.Dir) {
		return made, starling.Errorf(starling.Conflict, op, "%s holds a node already: start it with \"starling node\", or choose another --data", c.Dir)
	}
	now := time.Now()
	ca, err := identity.NewCA(name, now)
	if err != nil {
		return made, err
	}
	first, err := ca.Issue(identity.Grant{Node: 1, Roles: c.Roles}, now)
	if err != nil {
		return made, err
	}
	b := &bootstrap{Cluster: name, Partitions: partitions, Account: made.Account}
	for _, k := range []struct {
		role   starling.KeyRole
		secret *string
	}{{starling.KeyUser, &made.Key}, {starling.KeyAdmin, &made.AdminKey}} {
		secret, key := auth.NewKey()
		key.Account, key.Role, key.Created = made.Account, k.role, now.Unix()
		*k.secret = secret
		b.Keys = append(b.Keys, bootstrapKey{Key: key, Hash: key.Hash[:]})
	}
	fingerprint := ca.Fingerprint()
	made.Fingerprint = identity.FormatFingerprint(fingerprint)
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return made, starling.Errorf(starling.Invalid, op, "cannot make --data: %w", err)
	}
	if err := ca.Save(c.identityDir()); err != nil {
		return made, err
	}
	if err := first.Save(c.identityDir()); err != nil {
		return made, err
	}
	return made, c.saveMember(membership{Replica: 1, Managers: []string{c.advertise()}, Bootstrap: b})
}

// joinTime is how long a node asks to be let in: long enough for a member to start and for a cluster to elect a leader.
const joinTime = time.Minute

// Join makes this node a member of the cluster that one of addrs belongs to. It asks again, for joinTime at most, while no
// member can let it in: with the same request, which a member that did let it in answers as before. It may be repeated after
// a failure.
func Join(ctx context.Context, c Config, addrs []string, token string) error {
	const op = "join cluster"
	if err := c.Validate(); err != nil {
		return err
	}
	if Exists(c.Dir) {
		return starling.Errorf(starling.Conflict, op, "%s holds a node already: start it without --join", c.Dir)
	}
	t, err := identity.ParseToken(token)
	if err != nil {
		return err
	}
	req, err := identity.NewRequest()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	for {
		reply, err := joinAny(ctx, c, addrs, t, req)
		if err == nil {
			return c.admit(req, reply)
		}
		if k := starling.KindOf(err); k == starling.Denied || k == starling.Invalid {
			return err
		}
		c.Log.Warn("not let in yet, asking again", slog.String("at", strings.Join(addrs, ",")), slog.Any("error", err))
		select {
		case <-ctx.Done():
			return starling.Errorf(starling.Unavailable, op, "no member let this node in: check --join and that the members run: %w", err)
		case <-time.After(time.Second):
		}
	}
}

// joinAny asks one member after another.
func joinAny(ctx context.Context, c Config, addrs []string, t identity.Token, req *identity.Request) (cluster.JoinReply, error) {
	var failures []error
	for _, addr := range addrs {
		reply, err := joinAt(ctx, c, addr, t, req)
		if k := starling.KindOf(err); err == nil || k == starling.Denied || k == starling.Invalid {
			return reply, err
		}
		failures = append(failures, err)
	}
	return cluster.JoinReply{}, errors.Join(failures...)
}

func joinAt(ctx context.Context, c Config, addr string, t identity.Token, req *identity.Request) (cluster.JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	conn, err := quic.DialJoin(ctx, addr, quic.Trust{Pin: t.CA})
	if err != nil {
		return cluster.JoinReply{}, err
	}
	defer conn.Close()
	s, err := conn.Open(ctx)
	if err != nil {
		return cluster.JoinReply{}, err
	}
	n := starling.Node{Name: c.name(), Addr: c.advertise(), Roles: c.Roles, Zone: c.Zone, HTTP: c.HTTP}
	return cluster.Join(ctx, s, cluster.JoinRequest{Token: []byte(t.Secret), Request: req.CSR, Node: n})
}

// admit keeps what the cluster gave. member.json comes last: without it the folder holds no node.
func (c Config) admit(req *identity.Request, reply cluster.JoinReply) error {
	id, err := req.Accept(reply.Certificate, reply.Authority)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return starling.Errorf(starling.Invalid, "join cluster", "cannot make --data: %w", err)
	}
	if len(reply.Secret) > 0 {
		ca, err := identity.ParseCA(reply.Secret)
		if err != nil {
			return err
		}
		if err := ca.Save(c.identityDir()); err != nil {
			return err
		}
	}
	if err := id.Save(c.identityDir()); err != nil {
		return err
	}
	m := membership{Replica: reply.Node.Replica, Replicas: map[uint64]string{}}
	for _, n := range reply.Topology.Nodes {
		if n.Replica != 0 {
			m.Replicas[n.Replica] = n.Addr
		}
		if n.Replica != 0 && n.ID != reply.Node.ID {
			m.Managers = append(m.Managers, n.Addr)
		}
	}
	return c.saveMember(m)
}

func (c Config) identityDir() string { return filepath.Join(c.Dir, "identity") }

// member reads what Init or Join kept.
func (c Config) member() (membership, error) {
	var m membership
	path := filepath.Join(c.Dir, "member.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, starling.Errorf(starling.NotFound, "open node", "%s holds no node: make a cluster with \"starling cluster init\", join one with --join and --token, or run \"starling up\"", c.Dir)
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return m, starling.Errorf(starling.Invalid, "open node", "%s cannot be read; restore it, or join again with a new --data: %w", path, err)
	}
	return m, nil
}

// saveMember writes the file whole or not at all.
func (c Config) saveMember(m membership) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(c.Dir, "member.json"), append(text, '\n'), 0o600); err != nil {
		return starling.Errorf(starling.Internal, "keep membership", "%w", err)
	}
	return nil
}

// port returns the port of host:port for messages.
func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

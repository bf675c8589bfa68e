package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/backup"
	"starling/cluster/identity"
	"starling/cluster/manager"
	"starling/transport/quic"
)

// A Revived is what restoring a backup made.
type Revived struct {
	Cluster     string          `json:"cluster"`
	Node        starling.NodeID `json:"node"`    // the only member
	Replica     uint64          `json:"replica"` // the only copy of the state
	StateHash   string          `json:"stateHash"`
	CatalogHash string          `json:"catalogHash"` // the same in the backup and in the restored cluster
	Fingerprint string          `json:"fingerprint"` // SHA-256 of the CA's certificate, as before
	Summary     cluster.Summary `json:"backup"`
}

// restoreFile holds the backup from Restore until the first start has put its state into the log.
const restoreFile = "restore.backup"

// Restore makes c.Dir the first node of a cluster with the state of a backup. ca is the folder of a manager's identity
// for a backup without the CA's key, "" otherwise. Unless force is set it is refused (Conflict) while a manager of the
// old cluster still answers: two clusters would act for the same functions.
func Restore(ctx context.Context, c Config, path, ca string, force bool) (Revived, error) {
	const op = "restore cluster"
	var made Revived
	if err := c.Validate(); err != nil {
		return made, err
	}
	if !c.Roles.Has(starling.RoleManager) {
		return made, starling.Errorf(starling.Invalid, op, "--roles %s: the first node is a manager", c.Roles)
	}
	if Exists(c.Dir) {
		return made, starling.Errorf(starling.Conflict, op, "%s holds a node already: choose an empty --data", c.Dir)
	}
	f, err := os.Open(path)
	if err != nil {
		return made, starling.Errorf(starling.Invalid, op, "%w", err)
	}
	defer f.Close()
	rep, state, key, err := backup.Verify(f)
	if err != nil {
		return made, err
	}
	authority, err := caFor(rep.Header, key, ca)
	if err != nil {
		return made, err
	}
	if addr := answering(ctx, state, authority); addr != "" && !force {
		return made, starling.Errorf(starling.Conflict, op, "a manager of this cluster still answers at %s: stop all its nodes first, or say --force if they are cut off for ever", addr).With("ClusterRuns")
	}
	id, replica := state.Successor()
	first, err := authority.Issue(identity.Grant{Node: id, Roles: c.Roles}, time.Now())
	if err != nil {
		return made, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return made, starling.Errorf(starling.Invalid, op, "cannot make --data: %w", err)
	}
	if err := errors.Join(authority.Save(c.identityDir()), first.Save(c.identityDir()), keepCopy(f, filepath.Join(c.Dir, restoreFile))); err != nil {
		return made, starling.Errorf(starling.Internal, op, "%w", err)
	}
	made = Revived{Cluster: rep.Header.Cluster, Node: id, Replica: replica, StateHash: rep.End.StateHash, CatalogHash: rep.End.CatalogHash,
		Fingerprint: fingerprint(authority.Certificate()), Summary: rep.Summary}
	return made, c.saveMember(membership{Replica: replica, Managers: []string{c.advertise()}, Restore: true})
}

// caFor returns the cluster's CA with its key: from the backup, or from the folder of a manager's identity.
func caFor(h backup.Header, key []byte, dir string) (*identity.CA, error) {
	const op = "restore cluster"
	var ca *identity.CA
	var err error
	switch {
	case dir != "":
		ca, err = identity.LoadCA(dir)
	case key != nil:
		ca, err = identity.ParseCA(key)
	default:
		return nil, starling.Errorf(starling.Invalid, op, "this backup holds no CA key: name with --ca the \"identity\" folder of a manager of the cluster, or take backups with --with-ca-key")
	}
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(ca.Certificate(), h.Authority) {
		return nil, starling.Errorf(starling.Invalid, op, "the CA key is not that of the cluster in the backup")
	}
	return ca, nil
}

// answering returns the address of a manager of the backed-up cluster that answers now, "" for none.
func answering(ctx context.Context, s *cluster.State, ca *identity.CA) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	found := make(chan string, len(s.Topology().Nodes))
	asked := 0
	for _, n := range s.Topology().Nodes {
		if n.Replica == 0 {
			continue
		}
		asked++
		go func() { // ends with ctx
			conn, err := quic.DialJoin(ctx, n.Addr, quic.Trust{Pin: sha256.Sum256(ca.Certificate())})
			if err != nil {
				found <- ""
				return
			}
			conn.Close()
			found <- n.Addr
		}()
	}
	for range asked {
		if addr := <-found; addr != "" {
			return addr
		}
	}
	return ""
}

func keepCopy(from io.ReadSeeker, path string) error {
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Sync(), f.Close())
}

// restore puts the state of the backup into the log of this, the only replica. A start that was cut off goes on where
// it was: every part may come twice.
func (n *Node) restore(ctx context.Context) error {
	const op = "restore cluster"
	path := filepath.Join(n.cfg.Dir, restoreFile)
	f, err := os.Open(path)
	if err != nil {
		return starling.Errorf(starling.Internal, op, "the backup that was to be restored is gone: restore again into an empty --data: %w", err)
	}
	defer f.Close()
	in, err := backup.NewReader(f)
	if err != nil {
		return err
	}
	state, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	if _, _, err := in.End(); err != nil {
		return err
	}
	began := time.Now()
	node := starling.Node{ID: n.ID(), Replica: n.member.Replica, Name: n.cfg.name(), Addr: n.cfg.advertise(), Roles: n.cfg.Roles, Zone: n.cfg.Zone, HTTP: n.cfg.HTTP, Joined: began.Unix()}
	commands, err := cluster.RestoreCommands(state, node)
	if err != nil {
		return err
	}
	for _, c := range commands {
		bounded, cancel := context.WithTimeout(ctx, 30*time.Second)
		_, err := manager.Propose(bounded, n.replica, c)
		cancel()
		if err != nil {
			return err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := n.replica.Snapshot(bounded); err != nil {
		n.log("replica").Warn("the restored state is only in the log yet", slog.Any("error", err))
	}
	n.member.Restore = false
	if err := n.cfg.saveMember(n.member); err != nil {
		return err
	}
	n.log("replica").Info("the cluster is restored", slog.Int("bytes", len(state)), slog.Duration("in", time.Since(began)))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log("replica").Warn("the restored backup could not be removed", slog.Any("error", err))
	}
	return nil
}

package dragonboat

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"starling/internal/durable"

	db "github.com/lni/dragonboat/v4"

	"starling"
)

const (
	guardFile = "replica.json"
	raftDir   = "raft"
	storeDir  = "node" // under raftDir; the name Dragonboat wants, the host's, is a link to it
	statusFor = "dragonboat.ds"
)

// A replicaFile says whose directory this is. It lies beside the log, so that a log that was lost is noticed
// when the rest of the directory is still there.
type replicaFile struct {
	Cluster string    `json:"cluster"`
	Shard   uint64    `json:"shard"`
	Replica uint64    `json:"replica"`
	Host    string    `json:"host"`    // the machine's name at the last start
	Started bool      `json:"started"` // the log exists: the replica may have voted
	Created time.Time `json:"created"`

	// What the log must hold at least: a store whose files were partly lost can look like a younger one.
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied"` // index of an entry
}

// loadReplica reads or makes the file and prepares the store's directory.
func loadReplica(cfg Config) (r *replicaFile, err error) {
	fresh := false
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read host name: %w", err)
	}
	p := filepath.Join(cfg.Dir, guardFile)
	data, err := os.ReadFile(p)
	r = &replicaFile{}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r = &replicaFile{Cluster: cfg.Cluster, Shard: cfg.Shard, Replica: cfg.Replica, Host: host, Created: time.Now().UTC()}
		fresh = true
	case err != nil:
		return nil, starling.Errorf(starling.Internal, "open replica", "%s cannot be read: %w", p, err)
	case json.Unmarshal(data, r) != nil || r.Replica == 0:
		return nil, damaged(cfg.Dir, fmt.Errorf("%s cannot be read", p))
	}
	if r.Cluster != cfg.Cluster || r.Shard != cfg.Shard || r.Replica != cfg.Replica {
		return nil, starling.Errorf(starling.Conflict, "open replica", "%s belongs to replica %d of shard %d of cluster %q, not to replica %d of shard %d of %q: start with the right data directory",
			cfg.Dir, r.Replica, r.Shard, r.Cluster, cfg.Replica, cfg.Shard, cfg.Cluster)
	}
	renamed := r.Host != host
	if err := linkStore(cfg, host, renamed); err != nil {
		return nil, err
	}
	if fresh || renamed {
		r.Host = host
		if err := r.save(cfg.Dir); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// linkStore lets Dragonboat find its files under the machine's name, which it makes part of every path, although
// machines are renamed. Its own note of the name is made anew then; what else it notes is checked by us.
func linkStore(cfg Config, host string, renamed bool) error {
	store := filepath.Join(cfg.Dir, raftDir, storeDir)
	if err := os.MkdirAll(store, 0o700); err != nil {
		return starling.Errorf(starling.Internal, "open replica", "cannot make %s: %w", store, err)
	}
	link := filepath.Join(cfg.Dir, raftDir, host)
	if host != storeDir {
		if err := os.Symlink(storeDir, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return starling.Errorf(starling.Internal, "open replica", "cannot make %s: %w", link, err)
		}
	}
	if !renamed {
		return nil
	}
	notes, _ := filepath.Glob(filepath.Join(store, "*", statusFor))
	for _, n := range notes {
		if err := os.Remove(n); err != nil {
			return starling.Errorf(starling.Internal, "open replica", "cannot renew %s: %w", n, err)
		}
	}
	return nil
}

// save replaces the file as a whole.
func (r *replicaFile) save(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", guardFile, err)
	}
	if err := durable.WriteFile(filepath.Join(dir, guardFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", guardFile, err)
	}
	return nil
}

// lostLog refuses a replica that has forgotten what it promised to others.
func lostLog(cfg Config, what string) error {
	return starling.Errorf(starling.NotFound, "open replica", "the log of replica %d in %s %s: a replica that forgets may vote twice. "+
		"With other managers alive remove this folder and start the node again: it comes back as a new replica. If it was the only one, restore a backup", cfg.Replica, cfg.Dir, what).With("LostLog")
}

func damaged(dir string, err error) error {
	return starling.Errorf(starling.Internal, "open replica", "the log in %s is damaged: with other managers alive, remove this folder and start the node again, and it comes back "+
		"as a new replica; if it is the only one, restore a backup with \"starling cluster restore\": %w", dir, err).With("DamagedLog")
}

// openError explains what Dragonboat found wrong before it began.
func openError(dir string, err error) error {
	if errors.Is(err, db.ErrReplicaRemoved) {
		return starling.Errorf(starling.Conflict, "open replica", "this replica was removed from the cluster: join again under a new node with an empty data directory").With("Removed")
	}
	return damaged(dir, err)
}

// deployment is a number for the cluster's name, by which Dragonboat drops messages of another cluster.
func deployment(cluster string) uint64 {
	f := fnv.New64a()
	f.Write([]byte(cluster))
	return f.Sum64() | 1 // 0 means none
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"starling"
	"starling/cluster/backup"
	"starling/cluster/identity"
	"starling/cmd/starling/node"
	"starling/internal/durable"
)

const backupHelp = `Backup asks the leading manager for the whole replicated state and writes it to FILE (mode 0600): partition map, accounts,
keys (only their hashes), functions with their versions and environments, members and open join tokens. It then reads
FILE back and compares its hashes.

Keep beside it, because it is not in it: the bucket with the code packages (--bucket; without it the folder "bucket" of a
data directory), and the CA's private key unless --with-ca-key puts it in: then who has FILE can admit nodes. The key is
read from the data directory of a manager on this machine (--data), never over the network.`

func clusterBackup(a *app) *cobra.Command {
	var verify, withKey bool
	var data string
	c := &cobra.Command{
		Use: "backup FILE", Short: "Write the cluster's whole state to a file, or verify one (admin)", Args: cobra.ExactArgs(1), Long: backupHelp,
		Example: "  starling cluster backup prod.backup\n  starling cluster backup prod.backup --with-ca-key --data /var/lib/starling\n  starling cluster backup --verify prod.backup",
		RunE: func(cmd *cobra.Command, args []string) error {
			if verify {
				return a.verifyBackup(args[0])
			}
			return a.takeBackup(cmd.Context(), args[0], withKey, data)
		}}
	c.Flags().BoolVar(&verify, "verify", false, "read FILE and recompute its hashes, nothing else")
	c.Flags().BoolVar(&withKey, "with-ca-key", false, "put the CA's private key in, from --data")
	c.Flags().StringVar(&data, "data", "", "data directory of a manager on this machine, for --with-ca-key")
	return c
}

// takeBackup writes path only when the whole backup is good: until then it is path.part.
func (a *app) takeBackup(ctx context.Context, path string, withKey bool, data string) error {
	const op = "back up cluster"
	if withKey && data == "" {
		return usagef("--with-ca-key reads the key from a manager on this machine: name its --data")
	}
	if _, err := os.Lstat(path); err == nil {
		return starling.Errorf(starling.Conflict, op, "%s exists: choose another name", path)
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return starling.Errorf(starling.Invalid, op, "%w", err)
	}
	defer os.Remove(part) // does nothing after the rename
	defer f.Close()
	body, err := a.client().Backup(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	var in io.Reader = &progress{r: body, app: a}
	if withKey {
		if in, err = keyed(in, data); err != nil {
			return err
		}
	}
	if _, err := io.Copy(f, in); err != nil {
		return starling.Errorf(starling.Unavailable, op, "the backup did not come whole, take it again: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return starling.Errorf(starling.Internal, op, "%w", err)
	}
	rep, _, _, err := backup.Verify(f)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), os.Rename(part, path), durable.SyncDir(filepath.Dir(path))); err != nil {
		return starling.Errorf(starling.Internal, op, "%w", err)
	}
	return a.tellBackup(path, rep)
}

// keyed reads a whole backup and returns it with the CA's key of a manager's data directory in it.
func keyed(in io.Reader, data string) (io.Reader, error) {
	const op = "back up cluster"
	ca, err := identity.LoadCA(filepath.Join(data, "identity"))
	if err != nil {
		return nil, err
	}
	secret, err := ca.Marshal()
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(in)
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, op, "the backup did not come whole, take it again: %w", err)
	}
	head, err := backup.NewReader(bytes.NewReader(plain))
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(head.Header.Authority, ca.Certificate()) {
		return nil, starling.Errorf(starling.Invalid, op, "--data %s belongs to another cluster than the one that answered", data)
	}
	var out bytes.Buffer
	return &out, backup.AddKey(&out, bytes.NewReader(plain), secret)
}

func (a *app) verifyBackup(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return starling.Errorf(starling.Invalid, "read backup", "%w", err)
	}
	defer f.Close()
	rep, _, _, err := backup.Verify(f)
	if err != nil {
		return err
	}
	return a.tellBackup(path, rep)
}

func (a *app) tellBackup(path string, rep backup.Report) error {
	s, key := rep.Summary, "no: keep the folder \"identity\" of a manager"
	if rep.HasKey {
		key = "yes: keep this file secret"
	}
	return a.say(rep, "%s is whole: cluster %s at index %d, taken %s.\nHolds         %d accounts, %d keys, %d functions, %d versions, %d nodes, %d partitions\nCA key        %s\nNot in it     code packages: keep the bucket\nState hash    %s\nCatalog hash  %s",
		path, printable(s.Cluster), s.Index, time.Unix(rep.Header.Created, 0).UTC().Format(time.RFC3339), s.Accounts, s.Keys, s.Functions, s.Versions, s.Nodes, s.Partitions, key, rep.End.StateHash, rep.End.CatalogHash)
}

// A progress tells on a terminal how much of a stream has come.
type progress struct {
	r    io.Reader
	app  *app
	read int64
	told time.Time
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.read += int64(n)
	if p.app.tty && (time.Since(p.told) > 200*time.Millisecond || err != nil) {
		p.told = time.Now()
		fmt.Fprintf(p.app.err, "\r%s", size(p.read))
		if err != nil {
			fmt.Fprintln(p.app.err)
		}
	}
	return n, err
}

const restoreHelp = `Restore fills --data for the first node of a cluster with the state that FILE holds. Accounts, keys and functions are
as they were; epochs, ids and indexes go on far above what the backup knows, every partition belongs to nobody, and the
new node is the only member: the old ones are refused and join anew, with tokens and empty data directories. The
cluster keeps its CA, so clients that pin it need no change. Give the node the old bucket: the code is there.

Stop all nodes of the old cluster first; restore refuses while one of its managers answers.`

func clusterRestore(a *app) *cobra.Command {
	var ca string
	var force bool
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make a new cluster of one node from a backup", Args: cobra.ExactArgs(1), Long: restoreHelp,
		Example: "  starling cluster restore prod.backup --data /var/lib/starling --listen 10.0.0.1:7400 --bucket s3://code\n  starling cluster restore prod.backup --ca /mnt/old/identity --listen 10.0.0.1:7400",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.nodeConfig()
			if err != nil {
				return err
			}
			made, err := node.Restore(cmd.Context(), cfg, args[0], ca, force)
			if err != nil {
				return err
			}
			return a.say(made, "Restored cluster %s in %s: node %s is its only member.\nState hash    %s\nCatalog hash  %s\nFingerprint   %s\nStart it with the old bucket: starling node --data %s --listen %s",
				made.Cluster, cfg.Dir, made.Node, made.StateHash, made.CatalogHash, made.Fingerprint, cfg.Dir, cfg.Listen)
		}}
	addSettingFlags(c.Flags(), without(nodeSettings, "node.join", "node.token", "node.partitions"))
	c.Flags().StringVar(&ca, "ca", "", "\"identity\" folder of a manager of the cluster, when FILE holds no CA key")
	c.Flags().BoolVar(&force, "force", false, "even if a manager of the old cluster answers")
	return c
}

package node

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/identity"
	"starling/store/code"
	"starling/store/image"
	"starling/store/lazy"
	"starling/vmpool/kata"
)

// ShowImages is the one argument with which a node starts the helper that shows large packages.
const ShowImages = "show-images"

// levelTime bounds the question which releases live in the cluster.
const levelTime = 3 * time.Second

// images says how this node keeps and shows packages.
func (n *Node) images() (*code.Images, error) {
	im := code.DefaultImages()
	im.Self, im.Mixed = n.ID(), n.mixed
	im.Hosts = func() []code.Peer { return peersOf(n.view.Alive(), starling.RoleHost) }
	im.Managers = n.keyKeepers
	im.Placed = func(v starling.VersionID, host starling.NodeID) bool {
		k := n.keeper.Load()
		return k != nil && k.Placed(v, host)
	}
	if n.member.Replica != 0 {
		ca, err := identity.LoadCA(n.cfg.identityDir())
		if err != nil {
			return nil, err
		}
		secret, err := ca.Secret("code")
		if err != nil {
			return nil, err
		}
		ring, err := image.NewRing(secret)
		if err != nil {
			return nil, err
		}
		im.Keeper = &code.Keeper{Ring: ring, Version: n.view.Version, Owners: n.owners}
	}
	if !n.cfg.Roles.Has(starling.RoleHost) {
		return &im, nil
	}
	self, err := os.Executable()
	if err == nil {
		err = canShow()
	}
	if err == nil {
		im.Helper = []string{self, ShowImages}
	}
	if n.cfg.isolations().Has(starling.IsolationKata) && im.Helper != nil {
		im.DiskBytes = int64(kata.DefaultConfig().CodeMiB) << 20
	}
	mounts := lazy.Supported()
	im.Mounts = mounts == nil
	switch {
	case mounts != nil:
		n.log("code").Warn("packages are unpacked on disk, where they lie open", slog.Any("error", mounts))
	case err != nil:
		n.log("code").Warn("large packages are unpacked on disk, where they lie open", slog.Any("error", err))
	}
	return &im, nil
}

// canShow says what this machine lacks to show packages on demand; nil for nothing.
func canShow() error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !bytes.Contains(known, []byte("\terofs\n")) {
		return starling.Errorf(starling.Unavailable, "show images", "the kernel does not know EROFS: load the module erofs")
	}
	_, err = os.Stat("/dev/fuse")
	return err
}

// mixed reports whether a living node may be of a release that knows only zips.
func (n *Node) mixed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, levelTime)
	defer cancel()
	st, err := n.view.Status(ctx)
	if err != nil {
		return true
	}
	for _, s := range st.Nodes {
		if s.Alive && s.Level < cluster.LevelImages {
			return true
		}
	}
	return false
}

func peersOf(nodes []starling.Node, role starling.Roles) []code.Peer {
	var out []code.Peer
	for _, p := range nodes {
		if p.Roles.Has(role) {
			out = append(out, code.Peer{ID: p.ID, Addr: p.Addr})
		}
	}
	return out
}

// keyKeepers returns the living nodes that hold a replica, and with it the CA's key.
func (n *Node) keyKeepers() []code.Peer {
	var out []code.Peer
	for _, p := range n.view.Alive() {
		if p.Replica != 0 {
			out = append(out, code.Peer{ID: p.ID, Addr: p.Addr})
		}
	}
	return out
}

// owners returns who decides where the instances of a function go.
func (n *Node) owners(f starling.FunctionRef) []code.Peer {
	lo := starling.KeyOf(f, 0)
	var out []code.Peer
	for _, p := range n.view.Map().Overlapping(starling.Range{Lo: lo, Hi: lo + 1<<32}) {
		if p.Owner != 0 {
			out = append(out, code.Peer{ID: p.Owner, Addr: n.addr(p.Owner)})
		}
	}
	return out
}

// Package plugboard plugs networks in as uplink describes them: it makes a network's namespace, brings one device into it, and takes both away
// again. It is the only importer of the netlink library, whose errors and types end here.
package plugboard

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/uplink"
)

// A Board is the uplinks of one cluster's gateways on one machine. What a gateway makes there has a name that its cluster and the
// network say, a record, and a lock that the kernel holds for as long as the gateway's process lives: so gateways share what they both want, the
// last one takes it away, and what a killed one left behind is known as ours and as nobody's.
type Board struct {
	Dir        string   // of the records; every gateway of the machine has the same one. Made when it is not there
	Namespaces string   // where namespaces are shown by name: /run/netns, as "ip netns" has it
	Scope      string   // what says which cluster it is, such as the fingerprint of its CA
	Home       *os.File // namespace in which the operator's devices are; the board does not close it
}

// A record is what a gateway is about to make or has made. It is written before and removed after.
type record struct {
	Network starling.NetworkRef `json:"network"`
	Uplink  uplink.Uplink       `json:"uplink"`
	Device  *lent               `json:"device,omitempty"` // of the operator
}

// lent is how a device of the operator was, and is to be again.
type lent struct {
	MTU int  `json:"mtu"`
	Up  bool `json:"up"`
}

// prefix begins the names of everything of this board: its namespaces, records, and in short its veths.
func (b *Board) prefix() (string, error) {
	home, err := b.Home.Stat()
	if err != nil {
		return "", fmt.Errorf("look at own network namespace: %w", err)
	}
	st, ok := home.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("the system does not number namespaces")
	}
	return "starling-" + short(fmt.Sprintf("%s %d", b.Scope, st.Ino)) + "-", nil
}

// short returns nine letters and digits that stand for a text: with what stands before them they are no longer than the name of an interface may be.
func short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return strings.ToLower(base32.HexEncoding.EncodeToString(sum[:]))[:9]
}

// name returns what the namespace and the record of a network are called. A "." is in no account's name.
func (b *Board) name(ref starling.NetworkRef) (string, error) {
	prefix, err := b.prefix()
	return prefix + strings.TrimPrefix(string(ref.Account)+"."+string(ref.Name), "."), err
}

// guard waits until no other gateway of the machine plugs, and keeps others from it until the file is closed.
func (b *Board) guard() (*os.File, error) {
	if err := os.MkdirAll(b.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of uplinks: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(b.Dir, "guard"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("guard the uplinks: %w", err), f.Close())
	}
	return f, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// open opens a network's record, and reports whether a living gateway uses what it tells of.
func (b *Board) open(name string) (f *os.File, used bool, err error) {
	if f, err = os.OpenFile(filepath.Join(b.Dir, name), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, false, err
	}
	switch err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		return f, false, nil
	case unix.EWOULDBLOCK:
		return f, true, nil
	default:
		return nil, false, errors.Join(err, f.Close())
	}
}

// read returns what a record says; nil of one that is not whole, whose gateway was killed before it had begun.
func read(f *os.File) (*record, error) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, uplink.FileMax))
	if err != nil {
		return nil, err
	}
	var r record
	if json.Unmarshal(text, &r) != nil {
		return nil, nil
	}
	return &r, nil
}

// write makes r what a record says.
func (r *record) write(f *os.File) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	return err
}

// Sweep takes away what gateways of this cluster that live no more have left behind on this machine, and says of what networks.
func (b *Board) Sweep() ([]starling.NetworkRef, error) {
	const op = "sweep uplinks"
	guard, err := b.guard()
	if err != nil {
		return nil, starling.Errorf(starling.Internal, op, "%w", err)
	}
	defer guard.Close()
	prefix, err := b.prefix()
	if err != nil {
		return nil, starling.Errorf(starling.Internal, op, "%w", err)
	}
	list, err := os.ReadDir(b.Dir)
	if err != nil {
		return nil, starling.Errorf(starling.Internal, op, "%w", err)
	}
	var names []string
	for _, e := range list {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return b.sweep(names)
}

// atOnce is how many networks are taken away at the same time: the kernel waits for each device that ends, not for all in a row.
const atOnce = 16

// sweep takes away what records tell of, when nobody uses it, and says of what networks. The caller has the guard.
func (b *Board) sweep(names []string) ([]starling.NetworkRef, error) {
	refs, errs := make([]*starling.NetworkRef, len(names)), make([]error, len(names))
	var group sync.WaitGroup
	for lane := range atOnce {
		group.Go(func() {
			for i := lane; i < len(names); i += atOnce {
				if refs[i], errs[i] = b.sweepOne(names[i]); errs[i] != nil {
					errs[i] = starling.Errorf(starling.Internal, "take uplink away", "%s: %w", names[i], errs[i])
				}
			}
		})
	}
	group.Wait()
	var swept []starling.NetworkRef
	for _, ref := range refs {
		if ref != nil {
			swept = append(swept, *ref)
		}
	}
	return swept, errors.Join(errs...)
}

// sweepOne takes away what a record tells of, when nobody uses it.
func (b *Board) sweepOne(name string) (*starling.NetworkRef, error) {
	f, used, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if used {
		return nil, nil
	}
	r, err := b.clear(f, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, os.Remove(f.Name())
	}
	return &r.Network, os.Remove(f.Name())
}

// clear takes away what the record in f tells of, which nobody uses, and returns what it was.
func (b *Board) clear(f *os.File, name string) (*record, error) {
	r, err := read(f)
	if err != nil || r == nil {
		return nil, err
	}
	if err := b.unmake(name, r); err != nil {
		return nil, err
	}
	return r, f.Truncate(0)
}

// show makes a new namespace and gives it its name among the machine's.
func (b *Board) show(name string) (ns *os.File, err error) {
	if err := b.shared(); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", b.Namespaces, err)
	}
	if ns, err = netns.New(); err != nil {
		return nil, err
	}
	path := filepath.Join(b.Namespaces, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err == nil {
		f.Close()
		err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "none", unix.MS_BIND, "")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("name namespace %s: %w", path, err), ns.Close(), os.Remove(path))
	}
	return ns, nil
}

// shared makes the folder of namespaces one whose mounts are seen, and end, in all of the machine's mount namespaces, as "ip netns" does before the
// first of its own: had it to do so over ours, it would cover them.
func (b *Board) shared() error {
	if err := os.MkdirAll(b.Namespaces, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", b.Namespaces, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) { // which says that it is no mount yet
		return err
	}
	if err := unix.Mount(b.Namespaces, b.Namespaces, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", b.Namespaces, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// hide takes a namespace's name away; the namespace ends with its last user.
func (b *Board) hide(name string) error {
	path := filepath.Join(b.Namespaces, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // it had not been mounted yet
		err = nil
	}
	if gone := os.Remove(path); gone != nil && !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

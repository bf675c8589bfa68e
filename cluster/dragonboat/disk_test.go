package dragonboat

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lni/vfs"

	"starling"
	"starling/transport"
	"starling/transport/inmem"
)

var (
	diskSeed = flag.Uint64("diskseed", 1, "first seed of the tests with power cuts, failing disks and damaged files")
	cuts     = flag.Int("cuts", 3, "power cuts, of one replica and of three at once")
	faults   = flag.Int("faults", 4, "failed writes and syncs")
	damages  = flag.Int("damages", 16, "damaged files")
)

// strictDisk returns a file system that forgets what was not synced, with the replica's directory on it.
func strictDisk(t testing.TB, dir string) *vfs.MemFS {
	t.Helper()
	d := vfs.NewStrictMem()
	if err := d.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for p := dir; ; p = filepath.Dir(p) {
		f, err := d.OpenDir(p)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if p == filepath.Dir(p) {
			return d
		}
	}
}

// powerCut ends every replica as a power cut does: nothing that is synced from now on counts, nothing is noted.
func (c *trio) powerCut() {
	for _, d := range c.disks {
		d.SetIgnoreSyncs(true)
	}
	for i, h := range c.hosts {
		h.closing.Do(func() {})
		h.shut()
		if err := h.stop(); err != nil {
			c.t.Error(err)
		}
		h.mark.file.Close()
		h.lock.Close()
		c.ends[i].Close()
	}
	clear(c.hosts)
	for _, d := range c.disks {
		d.ResetToSyncedState()
		d.SetIgnoreSyncs(false)
	}
}

// TestPowerCuts cuts the power at random instants under load: what was acknowledged before must be there afterwards.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	acked, lost := 0, 0
	for _, n := range []uint64{1, 3} {
		rng := rand.New(rand.NewPCG(*diskSeed, n))
		c := newTrio(t, n, false)
		c.every = 60 // snapshots and cuts of the log happen under the load, too
		c.disks = map[uint64]*vfs.MemFS{}
		for _, i := range c.members {
			c.disks[i] = strictDisk(t, filepath.Join(c.config(i).Dir, raftDir))
		}
		c.openAll()
		var words []string
		for cut := range *cuts {
			words = append(words, c.loadUntilCut(t, fmt.Sprint(cut), time.Duration(rng.IntN(150))*time.Millisecond)...)
			for _, i := range c.members {
				if err := os.Remove(filepath.Join(c.config(i).Dir, markFile)); err != nil { // it was not synced either
					t.Fatal(err)
				}
				c.listen(i)
			}
			c.openAll()
			c.leader()
			for _, w := range words {
				if read(t, c.hosts[1], w) == 0 {
					lost++
					t.Errorf("%d replicas, cut %d: the acknowledged %q is lost; rerun with -diskseed=%d", n, cut, w, *diskSeed)
				}
			}
		}
		acked += len(words)
	}
	t.Logf("%d power cuts of one replica and %d of three at once: %d commands acknowledged, %d lost", *cuts, *cuts, acked, lost)
}

// loadUntilCut proposes from all sides, cuts the power after a while and returns what was acknowledged before.
func (c *trio) loadUntilCut(t *testing.T, name string, after time.Duration) []string {
	t.Helper()
	propose(t, c.hosts[c.leader()], name)
	words := []string{name}
	var mu sync.Mutex // guards words and cut
	cut := false
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i, h := range c.hosts {
		for p := range 4 {
			load.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					w := fmt.Sprintf("%s.%d.%d.%d", name, i, p, n)
					_, _, err := h.Propose(ctx, []byte(w))
					mu.Lock()
					if err == nil && !cut {
						words = append(words, w)
					}
					mu.Unlock()
				}
			})
		}
	}
	time.Sleep(after) // the instant is what the seed draws; nothing waits for anything to have happened
	mu.Lock()
	cut = true
	mu.Unlock()
	c.powerCut()
	cancel()
	load.Wait()
	return words
}

// A faultyDisk fails one operation, the n-th, and works before and after: the nastiest kind.
type faultyDisk struct {
	op     vfs.Op
	left   atomic.Int64
	failed atomic.Bool
}

// MaybeError implements vfs.Injector.
func (f *faultyDisk) MaybeError(op vfs.Op) error {
	if op != f.op || f.left.Add(-1) != 0 {
		return nil
	}
	f.failed.Store(true)
	fmt.Println("FAILED")
	return vfs.ErrInjected
}

// runFaulty is one process of TestFailedWritesAreFatal: "dir op index". It proposes until the disk's fault ends it and
// prints a line for each acknowledged word; one whose proposal began after the fault is printed as false.
func runFaulty(spec string) {
	f := strings.Fields(spec)
	op, _ := strconv.Atoi(f[1])
	n, _ := strconv.ParseInt(f[2], 10, 64)
	disk := &faultyDisk{op: vfs.Op(op)}
	disk.left.Store(n)
	end := inmem.New(inmem.Config{}).Endpoint(transport.Peer{Node: 1})
	end.Listen()
	die := func(error) { fmt.Println("FATAL"); os.Exit(74) }
	cfg := lone(f[0], end, die)
	cfg.disk = vfs.Wrap(vfs.Default, disk)
	h, err := Open(cfg)
	if err != nil {
		fmt.Println("REFUSED", starling.KindOf(err))
		os.Exit(0)
	}
	for i := 0; i < 5000; i++ {
		late := disk.failed.Load()
		w := fmt.Sprint(f[2], ".", i)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, _, err := h.Propose(ctx, []byte(w))
		cancel()
		if err == nil {
			fmt.Println("A", w, late)
		}
		if late && (err != nil || i > 500) {
			break
		}
	}
	fmt.Println("SURVIVED")
	os.Exit(0)
}

func TestFailedWritesAreFatal(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process for each fault; nothing in them runs under the race detector")
	}
	t.Parallel()
	rng := rand.New(rand.NewPCG(*diskSeed, 16))
	fired, ended, acked, falsely, lost := 0, 0, 0, 0, 0
	for i := range *faults {
		op, dir := []vfs.Op{vfs.OpSync, vfs.OpWrite}[i%2], t.TempDir()
		at := 1 + rng.IntN(200)
		cmd, out := child(t, fmt.Sprintf("faulty %s %d %d", dir, op, at))
		var words []string
		failed, survived := false, false
		for out.Scan() {
			f := strings.Fields(out.Text())
			switch {
			case f[0] == "FAILED":
				failed = true
			case f[0] == "SURVIVED":
				survived = true
			case f[0] == "A":
				words = append(words, f[1])
				if f[2] == "true" {
					falsely++
				}
			}
		}
		_ = cmd.Wait() // how it ended is told by what it printed
		acked += len(words)
		if failed {
			fired++
		}
		if failed && !survived {
			ended++
		}
		if failed && survived {
			t.Logf("seed %d: operation %d of kind %d failed and the process went on", *diskSeed, at, op)
		}
		lost += missing(t, dir, words)
	}
	t.Logf("%d failed writes and syncs: %d ended the process; %d commands acknowledged, %d after the fault, %d lost", fired, ended, acked, falsely, lost)
	if falsely > 0 || lost > 0 || ended < fired {
		t.Error("a failed write or sync must end the process before anything more is acknowledged")
	}
}

// missing opens a replica with a sound disk and counts the words that are not there.
func missing(t *testing.T, dir string, words []string) (lost int) {
	t.Helper()
	end := inmem.New(inmem.Config{}).Endpoint(transport.Peer{Node: 1})
	end.Listen()
	defer end.Close()
	h, err := Open(lone(dir, end, nil))
	if err != nil {
		if len(words) > 0 {
			t.Logf("after the fault: %v", err)
		}
		return 0 // refused: nothing wrong is served
	}
	defer h.Close()
	for _, w := range words {
		if read(t, h, w) == 0 {
			lost++
		}
	}
	return lost
}

// harms damage the bytes of a file at a place that at, in [0, len), draws.
var harms = map[string]func(b []byte, at int) []byte{
	"flipped bit":      func(b []byte, at int) []byte { b[at] ^= 1 << (at % 8); return b },
	"truncated":        func(b []byte, at int) []byte { return b[:at] },
	"zeroed tail":      func(b []byte, at int) []byte { clear(b[at:]); return b },
	"misplaced block":  func(b []byte, at int) []byte { copy(b[at&^511:], b[at/2&^511:min(len(b), at/2&^511+512)]); return b },
	"garbage in a row": func(b []byte, at int) []byte { copy(b[at:], "garbage garbage garbage garbage"); return b },
}

// TestSeededDamage damages files of a replica that was killed, at places that a seed draws. The replica must refuse with
// a typed error or answer with exactly what it had; it must never answer with anything else.
func TestSeededDamage(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process for each damage; nothing in them runs under the race detector")
	}
	t.Parallel()
	const words = 150
	whole, h, stop := worded(t, words)
	want := fmt.Sprint("SUM ", read(t, h, "the sum"))
	image := t.TempDir() // as kill -9 leaves it: nothing was noted at the end
	if err := os.CopyFS(image, os.DirFS(whole)); err != nil {
		t.Fatal(err)
	}
	stop()
	files, kinds := filled(image), slices.Sorted(maps.Keys(harms))
	rng := rand.New(rand.NewPCG(*diskSeed, 18))
	tally := map[string]int{}
	for i := range *damages {
		f, kind := files[i%len(files)], kinds[rng.IntN(len(kinds))]
		verdict := damageOnce(t, image, f, kind, want, rng)
		tally[verdict]++
		if verdict == "wrong" || verdict == "crashed" {
			t.Errorf("%s in %s: %s; damage %d of seed %d", kind, f, verdict, i, *diskSeed)
		}
	}
	t.Logf("%d damages: %d refused, %d without effect on the state, %d changed nothing, %d wrong, %d crashed", *damages, tally["refused"], tally["whole"], tally["unchanged"], tally["wrong"], tally["crashed"])
}

// damageOnce damages one file of a copy of image and tells what a start of it comes to.
func damageOnce(t *testing.T, image, file, kind, want string, rng *rand.Rand) string {
	t.Helper()
	dir, changed := harmed(t, image, file, func(data []byte) []byte {
		used := max(1, len(bytes.TrimRight(data, "\x00"))) // logs are longer than what is written in them
		return harms[kind](data, rng.IntN(used))
	})
	if !changed {
		return "unchanged"
	}
	cmd, out := child(t, "open "+dir)
	verdict := "crashed"
	for out.Scan() {
		switch text := out.Text(); {
		case strings.HasPrefix(text, "REFUSED"):
			verdict = "refused"
		case text == want:
			verdict = "whole"
		case strings.HasPrefix(text, "SUM"):
			verdict = "wrong"
		}
	}
	_ = cmd.Wait() // how it ended is told by what it printed
	return verdict
}

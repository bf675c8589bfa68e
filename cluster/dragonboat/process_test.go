package dragonboat

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/cluster/identity"
	"starling/transport"
	"starling/transport/inmem"
	"starling/transport/quic"
)

// The test binary starts itself again as a replica when this variable is set.
const childVar = "STARLING_TEST_REPLICA"

func TestMain(m *testing.M) {
	switch spec := os.Getenv(childVar); {
	case spec == "":
		os.Exit(m.Run())
	case strings.HasPrefix(spec, "open "):
		openOnce(strings.TrimPrefix(spec, "open "))
	case strings.HasPrefix(spec, "faulty "):
		runFaulty(strings.TrimPrefix(spec, "faulty "))
	case strings.HasPrefix(spec, "fill "):
		runFill(strings.TrimPrefix(spec, "fill "))
	default:
		runReplica(spec)
	}
}

// child starts the test binary as a replica. It dies with the test.
func child(t *testing.T, spec string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childVar+"="+spec)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// runReplica is one process of TestKilledLeaders: "dir replica round addr1 addr2 addr3". It proposes for ever and prints a line
// for each acknowledged word, with the time its proposal began, and for each leader.
func runReplica(spec string) {
	f := strings.Fields(spec)
	dir, addrs := f[0], f[3:]
	replica, _ := strconv.ParseUint(f[1], 10, 64)
	die := func(err error) {
		fmt.Println("E", err)
		os.Exit(1)
	}
	id, err := identity.Load(filepath.Join(dir, f[1], "identity"))
	if err != nil {
		die(err)
	}
	end := quic.New(quic.Config{Addr: addrs[replica-1], Identity: id})
	if err := end.Listen(); err != nil {
		die(err)
	}
	h, err := Open(Config{Dir: filepath.Join(dir, f[1]), Cluster: "test", Shard: 1, Replica: replica, Members: []uint64{1, 2, 3},
		Endpoint: end, Resolve: func(r uint64) (string, bool) { return addrs[r-1], true }, Machine: newRegister(), SnapshotEvery: 200, Fatal: die,
		OnLeader: func(leader, _ uint64) { fmt.Println("L", leader) }})
	if err != nil {
		die(err)
	}
	for i := 0; ; i++ {
		word := fmt.Sprintf("%d.%s.%d", replica, f[2], i)
		start := time.Now().UnixNano()
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		_, _, err := h.Propose(ctx, []byte(word))
		cancel()
		if err == nil {
			fmt.Println("A", word, start)
		}
	}
}

// ledger is what the parent has heard.
type ledger struct {
	mu     sync.Mutex
	acked  []string
	last   map[uint64]int64 // replica → when the newest acknowledged proposal began, Unix nanoseconds
	leader uint64
	failed []string
}

func (l *ledger) listen(replica uint64, s *bufio.Scanner) {
	for s.Scan() {
		f := strings.Fields(s.Text())
		l.mu.Lock()
		switch {
		case len(f) == 3 && f[0] == "A":
			l.acked = append(l.acked, f[1])
			l.last[replica], _ = strconv.ParseInt(f[2], 10, 64)
		case len(f) == 2 && f[0] == "L":
			if n, _ := strconv.ParseUint(f[1], 10, 64); n > 0 {
				l.leader = n
			}
		case len(f) > 0 && f[0] == "E":
			l.failed = append(l.failed, s.Text())
		}
		l.mu.Unlock()
	}
}

// await polls until ok, under the ledger's lock, is true.
func (l *ledger) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		l.mu.Lock()
		done, failed := ok(), l.failed
		l.mu.Unlock()
		if len(failed) > 0 {
			t.Fatal(failed)
		}
		if done {
			return
		}
	}
	t.Fatalf("%s: not in 20 s", what)
}

func TestKilledLeaders(t *testing.T) {
	t.Parallel()
	const rounds = 3
	dir := t.TempDir()
	ca, err := identity.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var addrs []string
	for i := starling.NodeID(1); i <= 3; i++ {
		id, err := ca.Issue(identity.Grant{Node: i, Roles: starling.AllRoles}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := id.Save(filepath.Join(dir, fmt.Sprint(uint64(i)), "identity")); err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, freePort(t))
	}
	l := &ledger{last: map[uint64]int64{}}
	procs := map[uint64]*exec.Cmd{}
	var heard sync.WaitGroup
	start := func(replica uint64, round int) {
		cmd, out := child(t, fmt.Sprintf("%s %d %d %s", dir, replica, round, strings.Join(addrs, " ")))
		procs[replica] = cmd
		heard.Go(func() { l.listen(replica, out) })
	}
	kill := func(replica uint64) int64 {
		at := time.Now().UnixNano()
		procs[replica].Process.Kill()
		procs[replica].Wait()
		return at
	}
	for i := uint64(1); i <= 3; i++ {
		start(i, 0)
	}
	for round := 1; round <= rounds; round++ {
		now := time.Now().UnixNano()
		l.await(t, "all three write", func() bool { return l.last[1] > now && l.last[2] > now && l.last[3] > now && l.leader > 0 })
		l.mu.Lock()
		leader := l.leader
		l.mu.Unlock()
		at := kill(leader)
		l.await(t, "a survivor writes", func() bool {
			for i, began := range l.last {
				if i != leader && began > at {
					return true
				}
			}
			return false
		})
		t.Logf("kill -9 of leader %d: a write begun afterwards was acknowledged after %v", leader, time.Duration(time.Now().UnixNano()-at).Round(time.Millisecond))
		start(leader, round)
	}
	for i := range procs { // and all of them at once
		kill(i)
	}
	heard.Wait()

	c := newTrio(t, 0, true)
	c.dir, c.ca, c.members, c.every = dir, ca, []uint64{1, 2, 3}, 200
	for _, i := range c.members {
		c.addrs[i] = addrs[i-1]
		c.ids[i], _ = identity.Load(filepath.Join(dir, fmt.Sprint(i), "identity"))
		c.listen(i)
	}
	began := time.Now()
	c.openAll()
	c.leader()
	t.Logf("all three restarted and led in %v", time.Since(began).Round(time.Millisecond))
	lost := 0
	for _, w := range l.acked {
		if read(t, c.hosts[1], w) == 0 {
			lost++
		}
	}
	if lost > 0 || len(l.acked) == 0 {
		t.Errorf("%d of %d acknowledged words are lost", lost, len(l.acked))
	}
	t.Logf("%d words acknowledged, %d lost", len(l.acked), lost)
}

// freePort returns a loopback address whose UDP port is free now.
func freePort(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// openOnce is one process of TestDamagedFiles: it opens the only replica of a shard and prints what came of it.
func openOnce(dir string) {
	say := func(err error) {
		fmt.Println("REFUSED", starling.KindOf(err), starling.ReasonOf(err))
		os.Exit(0)
	}
	end := inmem.New(inmem.Config{}).Endpoint(transport.Peer{Node: 1})
	end.Listen()
	h, err := Open(lone(dir, end, say))
	if err != nil {
		say(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	v, err := h.Read(ctx, nil)
	if err != nil {
		say(err)
	}
	sum, err := h.Read(ctx, "the sum")
	if err != nil {
		say(err)
	}
	fmt.Println("SUM", sum)
	fmt.Println("WORDS", v)
	os.Exit(0)
}

func lone(dir string, end transport.Endpoint, fatal func(error)) Config {
	return Config{Dir: dir, Cluster: "test", Shard: 1, Replica: 1, Members: []uint64{1}, Endpoint: end, Fatal: fatal,
		Resolve: func(uint64) (string, bool) { return "", false }, Machine: newRegister(), SnapshotEvery: 40}
}

// worded makes a replica that is alone and has acknowledged so many words. stop ends it in order.
func worded(t *testing.T, words int) (dir string, h *Host, stop func()) {
	t.Helper()
	dir = t.TempDir()
	end := inmem.New(inmem.Config{}).Endpoint(transport.Peer{Node: 1})
	end.Listen()
	h, err := Open(lone(dir, end, nil))
	if err != nil {
		t.Fatal(err)
	}
	for i := range words {
		propose(t, h, fmt.Sprint("word ", i))
	}
	return dir, h, func() {
		h.Close()
		end.Close()
	}
}

// filled lists the files below a folder that hold anything, in the order of their names.
func filled(dir string) (files []string) {
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if i, err := d.Info(); err == nil && i.Mode().IsRegular() && i.Size() > 0 {
			rel, _ := filepath.Rel(dir, p)
			files = append(files, rel)
		}
		return err
	})
	slices.Sort(files)
	return files
}

// harmed copies a folder, but for one file whose bytes harm changes, and reports whether it did.
func harmed(t *testing.T, image, file string, harm func([]byte) []byte) (dir string, changed bool) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(image)); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, file)
	data, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	was := bytes.Clone(data)
	data = harm(data)
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, !bytes.Equal(was, data)
}

// TestDamagedFiles damages each file of a stopped replica in turn. The replica must refuse with a word of what to
// do, or answer with all it ever acknowledged; it must never panic and never answer with less.
func TestDamagedFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process for each file; nothing in them runs under the race detector")
	}
	t.Parallel()
	const words = 100
	whole, _, stop := worded(t, words)
	stop()
	harms := map[string]func([]byte) []byte{
		"flipped":   func(b []byte) []byte { b[min(len(b)/2, 200)] ^= 0x10; return b },
		"truncated": func(b []byte) []byte { return b[:min(len(b), 8000)/2] },
	}
	refused := 0
	for _, f := range filled(whole) {
		for name, harm := range harms {
			dir, _ := harmed(t, whole, f, harm)
			cmd, out := child(t, "open "+dir)
			var last string
			for out.Scan() {
				if strings.HasPrefix(out.Text(), "REFUSED") || strings.HasPrefix(out.Text(), "WORDS") {
					last = out.Text()
				}
			}
			if err := cmd.Wait(); err != nil || last == "" {
				t.Errorf("%s %s: %v", f, name, err)
			}
			t.Logf("%s %s: %s", f, name, last)
			if strings.HasPrefix(last, "REFUSED") {
				refused++
			} else if n, _ := strconv.Atoi(strings.TrimPrefix(last, "WORDS ")); n != words {
				t.Errorf("%s %s: it answers with %d words of %d", f, name, n, words)
			}
		}
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}

func TestLostLogDoesNotComeBack(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 1, false).openAll()
	propose(t, c.hosts[1], "a")
	c.stop(1)
	if err := os.RemoveAll(filepath.Join(c.dir, "1", raftDir)); err != nil {
		t.Fatal(err)
	}
	c.listen(1)
	_, err := Open(c.config(1))
	if starling.ReasonOf(err) != "LostLog" || !strings.Contains(err.Error(), "as a new replica") {
		t.Errorf("a replica without its log: %v", err)
	}
}

func TestDirectoryBelongsToOneReplica(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 1, false).openAll()
	propose(t, c.hosts[1], "a")
	if _, err := Open(c.config(1)); starling.ReasonOf(err) != "InUse" {
		t.Errorf("a directory that is open: %v, want Conflict", err)
	}
	c.stop(1)
	c.listen(1)
	for what, change := range map[string]func(*Config){
		"cluster": func(cfg *Config) { cfg.Cluster = "other" },
		"replica": func(cfg *Config) { cfg.Replica = 2 },
		"shard":   func(cfg *Config) { cfg.Shard = 2 },
	} {
		cfg := c.config(1)
		change(&cfg)
		if _, err := Open(cfg); starling.KindOf(err) != starling.Conflict {
			t.Errorf("another %s: %v, want Conflict", what, err)
		}
	}
	if err := os.WriteFile(filepath.Join(c.dir, "1", guardFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c.config(1)); starling.ReasonOf(err) != "DamagedLog" {
		t.Errorf("a guard file that cannot be read: %v", err)
	}
}

// TestMachineIsRenamed starts a replica whose directory was last used under another host name.
func TestMachineIsRenamed(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 1, false)
	c.every = 20
	c.openAll()
	for i := range 50 {
		propose(t, c.hosts[1], fmt.Sprint(i))
	}
	c.stop(1)
	host, _ := os.Hostname()
	raft := filepath.Join(c.dir, "1", raftDir)
	r, err := loadReplica(c.config(1))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "the-old-name"
	err = errors.Join(r.save(filepath.Join(c.dir, "1")), os.Rename(filepath.Join(raft, host), filepath.Join(raft, "the-old-name")))
	if err != nil {
		t.Fatal(err)
	}
	c.listen(1)
	c.open(c.config(1))
	if n := read(t, c.hosts[1], nil); n != 50 {
		t.Errorf("%d words of 50 under the new name", n)
	}
}

func FuzzReadRecord(f *testing.F) {
	w := &wire{messages: nil}
	f.Add(byte(streamSnapshot), []byte{1, 2, 3})
	f.Add(byte(9), []byte{})
	f.Fuzz(func(t *testing.T, kind byte, record []byte) {
		if kind == streamMessages || kind == streamSnapshot {
			w.messages, w.chunks = discardMessages, discardChunks
		}
		if err := w.take(kind, record); err != nil && starling.KindOf(err) != starling.Invalid && starling.KindOf(err) != starling.Unavailable {
			t.Fatal(err)
		}
	})
}

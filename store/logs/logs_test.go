package logs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"starling"
	"starling/transport"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func open(t testing.TB, change func(*Config)) *Store {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Dir, cfg.Log = t.TempDir(), slog.New(slog.DiscardHandler)
	if change != nil {
		change(&cfg)
	}
	s := New(cfg)
	if err := s.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func record(account, function string, second int, text string) Record {
	return Record{Time: start.Add(time.Duration(second) * time.Second), Function: starling.FunctionRef{Account: starling.AccountID(account), Name: starling.FunctionName(function)},
		Request: starling.RequestID{byte(second)}, Stream: Stdout, Text: []byte(text)}
}

func texts(t testing.TB, seq func(func(Record, error) bool)) []string {
	t.Helper()
	var out []string
	for r, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(r.Text))
	}
	return out
}

func equal(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestQuerySelects(t *testing.T) {
	s := open(t, nil)
	s.Append(record("acme", "f", 1, "one\ntwo"))
	s.Append(record("acme", "g", 2, "\x1b[2Jevil\x00"))
	s.Append(record("other", "f", 3, "secret"))
	s.Append(record("acme", "f", 4, "four"))
	numbered := record("acme", "f", 5, "five")
	numbered.Version = 7
	s.Append(numbered)
	ctx := context.Background()
	ask := func(q Query) []string { return texts(t, s.Query(ctx, q)) }
	equal(t, "all", ask(Query{Account: "acme", All: true}), "one", "two", "\x1b[2Jevil\x00", "four", "five")
	equal(t, "latest", ask(Query{Account: "acme", Function: "f"}), "one", "two", "four")
	equal(t, "version", ask(Query{Account: "acme", Version: 7}), "five")
	equal(t, "request", ask(Query{Account: "acme", All: true, Request: starling.RequestID{4}}), "four")
	equal(t, "since", ask(Query{Account: "acme", All: true, Since: start.Add(4 * time.Second)}), "four", "five")
	equal(t, "limit", ask(Query{Account: "acme", All: true, Limit: 2}), "four", "five")
	equal(t, "nobody", ask(Query{Account: "nobody"}))
	for _, bad := range []Query{{Account: "../acme"}, {Account: ""}, {Account: "acme", Limit: -1}, {Account: "acme", Function: "../g"}} {
		for _, err := range s.Query(ctx, bad) {
			if starling.KindOf(err) != starling.Invalid {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	}
}

func TestRecordsOutliveARestartAndATornEnd(t *testing.T) {
	s := open(t, nil)
	s.Append(record("acme", "f", 1, "before"))
	s.Close()
	files, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "acme", "*.log"))
	f, err := os.OpenFile(files[0], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	torn := appendEntry(nil, &Record{Time: start, Stream: Stdout, Text: []byte("torn")})
	f.Write(torn[:len(torn)-2])
	f.Close()
	again := open(t, func(c *Config) { c.Dir = s.cfg.Dir })
	again.Append(record("acme", "f", 2, "after"))
	equal(t, "both lives", texts(t, again.Query(context.Background(), Query{Account: "acme"})), "before", "after")
}

func TestFollowTellsWhatComes(t *testing.T) {
	s := open(t, func(c *Config) { c.FlushEvery = time.Millisecond; c.SegmentMax = 200 })
	s.Append(record("acme", "f", 1, "old"))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n := 0
	for r, err := range s.Query(ctx, Query{Account: "acme", Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && string(r.Text) != fmt.Sprint(n) {
			t.Fatalf("line %q, want %d", r.Text, n)
		}
		if n++; n == 50 { // over several segments
			break
		}
		s.Append(record("acme", "f", 1, fmt.Sprint(n)))
	}
	if n != 50 {
		t.Fatalf("followed %d lines", n)
	}
}

func TestEachAccountKeepsItsShare(t *testing.T) {
	s := open(t, func(c *Config) { c.SegmentMax = 1 << 10; c.AccountMax = 4 << 10 })
	s.Append(record("quiet", "f", 1, "still here"))
	line := strings.Repeat("x", 200)
	for i := range 200 {
		s.Append(record("loud", "f", i, line))
		s.flush()
	}
	list, err := s.segments("loud")
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, g := range list {
		total += g.size
	}
	if total > 6<<10 || total < 2<<10 {
		t.Errorf("loud account keeps %d bytes", total)
	}
	equal(t, "quiet", texts(t, s.Query(context.Background(), Query{Account: "quiet"})), "still here")
	s.cfg.AgeMax = time.Hour
	s.files.Lock()
	if err := s.prune(time.Now().Add(2 * time.Hour)); err != nil {
		t.Error(err)
	}
	s.files.Unlock()
	equal(t, "after its age", texts(t, s.Query(context.Background(), Query{Account: "quiet"})))
}

func TestFullBufferDropsAndCounts(t *testing.T) {
	s := New(Config{PendingMax: 1000, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}) // never opened: nobody writes
	for range 100 {
		s.Append(record("acme", "f", 1, strings.Repeat("x", 100)))
	}
	if kept, dropped := s.records.Get(), s.dropped.Get(); kept == 0 || dropped == 0 || kept+dropped != 100 {
		t.Fatalf("kept %d, dropped %d", kept, dropped)
	}
}

func TestDiskFailureDropsAndRecovers(t *testing.T) {
	s := open(t, func(c *Config) { c.FlushEvery = time.Hour })
	blocked := filepath.Join(s.cfg.Dir, "acme")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil { // a file where the folder must go
		t.Fatal(err)
	}
	s.Append(record("acme", "f", 1, "lost"))
	s.flush()
	if s.dropped.Get() != 1 {
		t.Fatalf("dropped %d", s.dropped.Get())
	}
	os.Remove(blocked)
	s.Append(record("acme", "f", 2, "kept"))
	equal(t, "after", texts(t, s.Query(context.Background(), Query{Account: "acme"})), "kept")
}

// duplex is one end of a stream in this process.
type duplex struct {
	net.Conn
	peer transport.Peer
}

func (d *duplex) CloseWrite() error    { return nil } // net.Pipe cannot; the asker knows frameEnd
func (d *duplex) Cancel()              { d.Close() }
func (d *duplex) Peer() transport.Peer { return d.peer }

func fanout(stores map[string]*Store, roles starling.Roles) *Fanout {
	return &Fanout{Self: 1, Local: stores["n1"], Log: slog.New(slog.DiscardHandler),
		Hosts: func() []Host { return []Host{{1, "n1"}, {2, "n2"}, {3, "n3"}} },
		Open: func(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error) {
			s, ok := stores[addr]
			if !ok {
				return nil, starling.Errorf(starling.Unavailable, "open stream", "%s is away", addr)
			}
			a, b := net.Pipe()
			go s.serve(&duplex{b, transport.Peer{Node: 9, Roles: roles}})
			return &duplex{Conn: a}, nil
		}}
}

func TestFanoutMergesHostsByTime(t *testing.T) {
	stores := map[string]*Store{"n1": open(t, nil), "n2": open(t, nil)}
	for i := range 10 {
		stores[fmt.Sprintf("n%d", i%2+1)].Append(record("acme", "f", i, fmt.Sprint(i)))
	}
	got := texts(t, fanout(stores, starling.RoleFrontend).Query(context.Background(), Query{Account: "acme", Limit: 4}))
	equal(t, "merged", got, "6", "7", "8", "9", "starling: host n3 does not answer; its lines are missing")

	got = texts(t, fanout(stores, starling.RoleHost).Query(context.Background(), Query{Account: "acme"}))
	equal(t, "asked without the role", got, "0", "2", "4", "6", "8",
		"starling: host n2 does not answer; its lines are missing", "starling: host n3 does not answer; its lines are missing")
}

func TestFanoutFollowsAllHosts(t *testing.T) {
	quick := func(c *Config) { c.FlushEvery = time.Millisecond }
	stores := map[string]*Store{"n1": open(t, quick), "n2": open(t, quick), "n3": open(t, quick)}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, s := range stores {
		s.Append(record("acme", "f", 0, "begin"))
	}
	seen := map[string]bool{}
	n := 0
	for r, err := range fanout(stores, starling.RoleFrontend).Query(ctx, Query{Account: "acme", Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			for name, s := range stores {
				s.Append(record("acme", "f", 1, name))
			}
		}
		if seen[string(r.Text)] = true; len(seen) == 4 {
			break
		}
	}
	if len(seen) != 4 {
		t.Fatalf("saw %v", seen)
	}
}

func FuzzEntry(f *testing.F) {
	r := record("acme", "f", 1, "hello")
	f.Add(appendEntry(nil, &r))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, n := parseEntry(b)
		if n == 0 {
			return
		}
		if again := appendEntry(nil, &r); !bytes.Equal(again, b[:n]) {
			t.Fatalf("%x became %x", b[:n], again)
		}
	})
}

func FuzzQuestionAndAnswer(f *testing.F) {
	q, _ := cbor.Marshal(Query{Account: "acme"})
	f.Add(append([]byte{byte(len(q)), 0, 0, 0}, q...))
	r := record("acme", "f", 1, "hello")
	f.Add(appendEntry([]byte{frameLine}, &r))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := readQuery(bytes.NewReader(b)); err == nil && q.Validate() != nil {
			t.Fatal("an invalid query was read")
		}
		in := bufio.NewReader(bytes.NewReader(b))
		for {
			if _, err := readItem(in, "acme"); err != nil {
				if err != io.EOF && starling.KindOf(err) == starling.Internal && err != io.ErrUnexpectedEOF {
					t.Fatalf("%v", err)
				}
				return
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	s := open(b, nil)
	r := record("acme", "f", 1, "START RequestId: 0b1946ac-92d2-4cd5-9b5e-3a6f6d3f4a51 Version: latest\nEND RequestId\nREPORT RequestId: x")
	b.ReportAllocs()
	for b.Loop() {
		s.Append(r)
	}
	b.ReportMetric(float64(s.dropped.Get())/float64(b.N), "dropped/op")
}

package vpcproxy

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/transport"
	"starling/transport/quic"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
	"starling/vpcproxy/resume"
	"starling/vpcproxy/uplink"
)

// serves returns the gateway that carries the network's flows, and the other.
func (w *world) serves() (one, other *gatewayNode) {
	if bytes.Contains(numbers(w.gateways[0]), []byte("starling_gateway_flows 0")) {
		return w.gateways[1], w.gateways[0]
	}
	return w.gateways[0], w.gateways[1]
}

// An echo is a connection on which numbers go out and must come back.
type echo struct {
	conn net.Conn
	seq  uint64
	gap  atomic.Int64 // nanoseconds: the longest that one was away
}

func (w *world) echo(s *sandbox, account string) *echo {
	c, err := s.dial("tcp", serverAddr+":8080")
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	must(w.t, c.SetDeadline(time.Now().Add(time.Minute)))
	b := make([]byte, len(account)+1)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != account+"\n" {
		w.t.Fatal(string(b), err)
	}
	return &echo{conn: c}
}

// once sends the next number and waits for it.
func (e *echo) once() error {
	e.seq++
	at := time.Now()
	b := binary.BigEndian.AppendUint64(nil, e.seq)
	if _, err := e.conn.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(e.conn, b); err != nil {
		return err
	}
	e.gap.Store(max(e.gap.Load(), int64(time.Since(at))))
	if got := binary.BigEndian.Uint64(b); got != e.seq {
		return fmt.Errorf("%d came back for %d", got, e.seq)
	}
	return nil
}

// await waits until a gateway's numbers have a line.
func await(t testing.TB, g *gatewayNode, line string) {
	t.Helper()
	awaitLine(t, func() []byte { return numbers(g) }, line)
}

// awaitHost waits until the host's numbers have a line.
func awaitHost(t testing.TB, w *world, line string) {
	t.Helper()
	awaitLine(t, func() []byte { return host(w) }, line+"\n")
}

func awaitLine(t testing.TB, numbers func() []byte, line string) {
	t.Helper()
	for range 1000 {
		if bytes.Contains(numbers(), []byte(line)) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("no %q:\n%s", line, numbers())
}

// drained has n connections at work while the gateway that carries them is emptied and ends, and returns them.
func drained(t testing.TB, w *world, n int) []*echo {
	t.Helper()
	s := w.connected("acme")
	echoes := make([]*echo, n)
	for i := range echoes {
		echoes[i] = w.echo(s, "acme")
	}
	from, to := w.serves()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for _, e := range echoes {
		wg.Go(func() {
			for !stop.Load() {
				if err := e.once(); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	for _, e := range echoes {
		e.gap.Store(0)
	}
	from.leaving.Store(true)
	await(t, to, fmt.Sprintf("starling_gateway_flows %d\n", n))
	await(t, from, "starling_gateway_flows 0\n")
	from.dead.Store(true)
	must(t, from.gateway.Close())
	must(t, from.endpoint.Close())
	time.Sleep(200 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	return echoes
}

// Connections go on when the gateway that carries them is emptied, over its end.
func TestDrainLosesNoConnection(t *testing.T) {
	w := newWorld(t, 2, nil)
	for _, e := range drained(t, w, 40) {
		if err := e.once(); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever is under way when a flow moves comes once and in order: bulk in both directions, directions that have ended, readers that do
// not read, and several moves one after the other.
func TestNothingIsLostOrDoubledOnTheWay(t *testing.T) {
	w := newWorld(t, 2, nil)
	s := w.connected("acme")
	const size = 8 << 20
	sent := make([]byte, size)
	rand.NewChaCha8([32]byte{7}).Read(sent)
	stalled, err := s.dial("tcp", serverAddr+":8080")
	must(t, err)
	defer stalled.Close()
	var wg sync.WaitGroup
	send := func(c net.Conn) {
		wg.Go(func() {
			if _, err := c.Write(sent); err != nil {
				t.Error(err)
				return
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Error(err)
			}
		})
	}
	send(stalled) // comes back when it is read
	read := func(c net.Conn) {
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, append([]byte("acme\n"), sent...)) {
			t.Errorf("%d of %d bytes came back, or others: %v", len(got), len(sent)+5, err)
		}
	}
	for range 4 {
		c, err := s.dial("tcp", serverAddr+":8080")
		must(t, err)
		defer c.Close()
		send(c)
		wg.Go(func() { read(c) })
	}
	half := w.echo(s, "acme") // says its last before the move
	_, err = half.conn.Write([]byte("last"))
	must(t, err)
	must(t, half.conn.(*net.TCPConn).CloseWrite())
	if b, err := io.ReadAll(half.conn); err != nil || string(b) != "last" {
		t.Errorf("%q, %v", b, err)
	}
	for i := range 4 {
		time.Sleep(100 * time.Millisecond)
		one, other := w.gateways[i%2], w.gateways[(i+1)%2]
		other.leaving.Store(false)
		one.leaving.Store(true)
		await(t, one, "starling_gateway_flows 0\n")
	}
	wg.Go(func() { read(stalled) })
	wg.Wait()
	for _, g := range w.gateways {
		if !bytes.Contains(numbers(g), []byte("starling_gateway_lost_total 0")) {
			t.Errorf("flows were lost:\n%s", numbers(g))
		}
	}
}

// Nothing comes to a gateway that is being emptied because the other is slow for a moment: its end would reset that.
func TestNothingComesToAGatewayThatIsEmptied(t *testing.T) {
	w := newWorld(t, 2, nil)
	fords := map[*gatewayNode]*ford{w.gateways[0]: w.ford(w.gateways[0]), w.gateways[1]: w.ford(w.gateways[1])}
	s := w.connected("acme")
	e := w.echo(s, "acme")
	from, to := w.serves()
	from.leaving.Store(true)
	await(t, to, "starling_gateway_flows 1\n")
	came := regexp.MustCompile(`starling_gateway_flows_total\{kind="tcp"\} \d+`)
	before := came.Find(numbers(from))
	fords[to].still.Store(true)
	time.AfterFunc(900*time.Millisecond, func() { fords[to].still.Store(false) }) // longer than another that stays would be waited for
	for _, e := range []*echo{w.echo(s, "acme"), e} {
		must(t, e.once())
	}
	if after := came.Find(numbers(from)); len(before) == 0 || !bytes.Equal(before, after) {
		t.Errorf("%q before, %q after", before, after)
	}
}

// Where no gateway can take them, flows stay, and where one takes them only half they are reset.
func TestFlowsStayWhereNobodyTakesThem(t *testing.T) {
	w := newWorld(t, 2, nil)
	bare := 0
	w2 := newWorld(t, 2, func(c *gateway.Config) {
		if bare++; bare == 2 {
			c.Uplinks = map[starling.NetworkRef]uplink.Uplink{}
		}
	})
	for name, w := range map[string]*world{"the other is being emptied, too": w, "the other is not plugged in": w2} {
		e := w.echo(w.connected("acme"), "acme")
		from, to := w.serves()
		from.leaving.Store(true)
		if w != w2 {
			to.leaving.Store(true)
		}
		for range 20 {
			time.Sleep(50 * time.Millisecond)
			if err := e.once(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if !bytes.Contains(numbers(from), []byte("starling_gateway_flows 1")) {
			t.Errorf("%s:\n%s", name, numbers(from))
		}
	}
}

// The successor dies with what it took: the connection is reset, and never goes another way.
func TestSuccessorsEndResetsWhatItTook(t *testing.T) {
	w := newWorld(t, 2, nil)
	e := w.echo(w.connected("acme"), "acme")
	from, to := w.serves()
	from.leaving.Store(true)
	await(t, to, "starling_gateway_flows 1\n")
	must(t, e.once())
	must(t, to.gateway.Close())
	if _, err := e.conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow of the dead successor: %v", err)
	}
}

// A gateway beside, which its operator has plugged into another network under this one's name, never gets a connection of it.
func TestSuccessorInAnotherNamespaceTakesNothing(t *testing.T) {
	w := newWorld(t, 1, nil)
	e := w.echo(w.connected("acme"), "acme")
	w.addGateway(w.ca, 11, func(c *gateway.Config) {
		c.Uplinks[starling.NetworkRef{Account: "acme", Name: "db"}] = c.Uplinks[starling.NetworkRef{Account: "zeta", Name: "db"}]
	})
	from, to := w.gateways[0], w.gateways[1]
	from.leaving.Store(true)
	await(t, from, "starling_gateway_lost_total 1\n")
	if _, err := e.conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow: %v", err)
	}
	await(t, to, "starling_gateway_flows 0\n")
}

// A flow goes on for the host whose it is, and for nobody else who knows its token, its number of bytes or its gateway.
func TestFlowIsResumedByItsHostAlone(t *testing.T) {
	w := newWorld(t, 2, nil)
	say := func(from *quic.Endpoint, to *gatewayNode, h header.Header, more int) (transport.Stream, header.Answer, []byte) {
		t.Helper()
		tunnel, err := from.Dial(t.Context(), to.node.Addr)
		must(t, err)
		t.Cleanup(tunnel.Close)
		s, err := tunnel.Open(t.Context(), transport.ChannelTunnel)
		must(t, err)
		must(t, s.SetReadDeadline(time.Now().Add(20*time.Second)))
		h.Version = header.Movable
		_, err = s.Write(header.Append(nil, h))
		must(t, err)
		b := make([]byte, 1+more)
		_, err = io.ReadFull(s, b[:1])
		must(t, err)
		if header.Answer(b[0]) == header.Open {
			_, err = io.ReadFull(s, b[1:])
			must(t, err)
		}
		return s, header.Answer(b[0]), b[1:]
	}
	g := grant.Grant{Attachment: w.attachment("acme", "db"), Host: 1, First: time.Now().Unix(), Until: time.Now().Add(time.Hour).Unix()}
	raw := grant.Sign(ed25519.NewKeyFromSeed(w.signer.Seed), g)
	one, two := w.gateways[0], w.gateways[1]
	old, answer, token := say(w.host, one, header.Header{Kind: header.TCP, Grant: raw, To: netip.MustParseAddrPort(serverAddr + ":8080")}, 16)
	if answer != header.Open {
		t.Fatalf("the flow: %s", answer)
	}
	_, err := old.Write([]byte("hello"))
	must(t, err)
	right := header.Header{Kind: header.Resume, From: one.node.ID, Token: resume.Token(token), Sent: 5}
	wrong, elsewhere, itself := right, right, right
	wrong.Token[7] ^= 1
	elsewhere.From = 99
	itself.From = two.node.ID
	stranger := endpoint(t, w.ca, 2, starling.RoleHost, false, nil)
	for name, try := range map[string]func() header.Answer{
		"another host":      func() header.Answer { _, a, _ := say(stranger, two, right, 8); return a },
		"another token":     func() header.Answer { _, a, _ := say(w.host, two, wrong, 8); return a },
		"another gateway":   func() header.Answer { _, a, _ := say(w.host, two, elsewhere, 8); return a },
		"the gateway's own": func() header.Answer { _, a, _ := say(w.host, two, itself, 8); return a },
	} {
		if a := try(); a != header.NoUplink {
			t.Errorf("%s: %s", name, a)
		}
	}
	next, answer, sent := say(w.host, two, right, 8)
	if answer != header.Open {
		t.Fatalf("its host: %s", answer)
	}
	all := make([]byte, 10)
	behind := int(binary.BigEndian.Uint64(sent)) // what the old gateway had sent, the new one never sends
	if _, err := io.ReadFull(old, all[:behind]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(next, all[behind:]); err != nil || string(all) != "acme\nhello" {
		t.Errorf("%q, %v", all, err)
	}
}

// A gateway of the release before knows no version but the first: its flows begin, and end with it.
func TestGatewayOfTheReleaseBeforeServes(t *testing.T) {
	w := newWorld(t, 1, nil)
	g := w.gateways[0]
	g.endpoint.Handle(transport.ChannelTunnel, func(s transport.Stream) {
		var first [1]byte
		if _, err := io.ReadFull(s, first[:]); err != nil {
			return
		}
		if first[0] != header.Fixed {
			s.Write([]byte{byte(header.Malformed)})
			s.CloseWrite()
			return
		}
		g.gateway.Serve(&began{s, bytes.NewReader(first[:])})
	})
	s := w.connected("acme")
	e := w.echo(s, "acme")
	must(t, e.once())
	if got, err := s.tell(serverAddr+":9000", "hello", 5*time.Second); got != "acme:hello" || err != nil {
		t.Errorf("over UDP: %q, %v", got, err)
	}
}

// began is a stream of which the first bytes were read.
type began struct {
	transport.Stream
	first *bytes.Reader
}

func (s *began) Read(p []byte) (int, error) {
	if s.first.Len() > 0 {
		return s.first.Read(p)
	}
	return s.Stream.Read(p)
}

// BenchmarkDrain empties a gateway with 500 connections at work.
func BenchmarkDrain(b *testing.B) {
	w := newWorld(b, 2, nil)
	var gaps []time.Duration
	for b.Loop() {
		for _, e := range drained(b, w, 500) {
			gaps = append(gaps, time.Duration(e.gap.Load()))
		}
	}
	report(b, "gap", gaps)
	b.ReportMetric(float64(slices.Max(gaps).Microseconds()), "gap-max-µs")
}

package resume

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"starling"
)

// TestTranscripts runs testdata: the commands are what happens to one end of a flow.
func TestTranscripts(t *testing.T) {
	var a Account
	datadriven.RunTest(t, "testdata/account", func(t *testing.T, d *datadriven.TestData) string {
		number := func(key string) (n int) {
			if d.HasArg(key) {
				d.ScanArgs(t, key, &n)
			}
			return n
		}
		var out strings.Builder
		switch d.Cmd {
		case "new":
			a = Account{}
		case "read":
			a.Read(make([]byte, number("n")), number("sent"))
		case "took":
			a.Took(make([]byte, number("n")), number("written"))
		case "behind":
			n, err := a.Behind(uint64(number("sent")))
			if err != nil {
				return err.Error() + "\n"
			}
			fmt.Fprintf(&out, "%d bytes to come; ", n)
		case "go-on":
			fmt.Fprintf(&out, "first %d to send, %d to write; ", len(a.Unsent()), len(a.Unwritten()))
		default:
			d.Fatalf(t, "unknown command %q", d.Cmd)
		}
		fmt.Fprintf(&out, "sent %d, taken %d, unsent %d, unwritten %d\n", a.Sent(), a.Taken(), len(a.unsent), len(a.unwritten))
		return out.String()
	})
}

// A pipe is one direction of a flow from one connection to another, over streams that are replaced at any moment: what an end has read and
// written, and what is under way between the two.
type pipe struct {
	rng     *rand.Rand
	source  []byte // what the one connection still has to say
	under   []byte // what the stream holds
	arrived []byte // what the other connection has
	out, in Account
}

// step lets some bytes go on, or none.
func (p *pipe) step() {
	some := func(n int) int { return p.rng.IntN(n + 1) }
	if n := some(min(len(p.source), 50)); n > 0 {
		chunk := p.source[:n]
		p.source = p.source[n:]
		p.out.Read(chunk, n)
		p.under = append(p.under, chunk...)
	}
	if n := some(min(len(p.under), 50)); n > 0 {
		chunk := p.under[:n]
		p.under = p.under[n:]
		p.in.Took(chunk, n)
		p.arrived = append(p.arrived, chunk...)
	}
}

// move stops the direction, perhaps in the middle of a write at either end, and goes on over a new stream: at the receiver's end, at the
// sender's or at both another process has the account.
func (p *pipe) move() error {
	if n := min(len(p.source), p.rng.IntN(50)); n > 0 {
		part := p.rng.IntN(n + 1)
		p.out.Read(p.source[:n], part)
		p.under = append(p.under, p.source[:part]...)
		p.source = p.source[n:]
	}
	if n := min(len(p.under), p.rng.IntN(50)); n > 0 && len(p.in.unwritten) == 0 { // what waits goes before what comes
		part := p.rng.IntN(n + 1)
		p.in.Took(p.under[:n], part)
		p.arrived = append(p.arrived, p.under[:part]...)
		p.under = p.under[n:]
	}
	behind, err := p.in.Behind(p.out.Sent())
	if err != nil {
		return err
	}
	if behind != len(p.under) {
		return fmt.Errorf("%d bytes are under way, the account says %d", len(p.under), behind)
	}
	p.in.Took(p.under, 0)
	p.under = nil
	p.out = Restore(p.out.Sent(), p.out.Taken(), p.out.Unsent(), p.out.Unwritten())
	p.in = Restore(p.in.Sent(), p.in.Taken(), p.in.Unsent(), p.in.Unwritten())
	if unsent := p.out.Unsent(); len(unsent) > 0 {
		p.out.Read(unsent, len(unsent))
		p.under = append(p.under, unsent...)
	}
	if waiting := p.in.Unwritten(); len(waiting) > 0 {
		n := p.rng.IntN(len(waiting) + 1) // the other connection may not read all of it before the next move
		p.arrived = append(p.arrived, waiting[:n]...)
		p.in.Return(waiting[n:])
		if n < len(waiting) {
			return p.move()
		}
	}
	return nil
}

// Whenever a flow moves, each byte arrives once and in order.
func TestEachByteArrivesOnce(t *testing.T) {
	for seed := range uint64(1000) {
		p := &pipe{rng: rand.New(rand.NewPCG(seed, 1)), source: make([]byte, 2000)}
		rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p.source)
		sent := p.source
		for steps := 0; len(p.arrived) < len(sent) && steps < 10_000; steps++ {
			p.step()
			if p.rng.IntN(20) == 0 {
				if err := p.move(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		}
		if !bytes.Equal(p.arrived, sent) {
			t.Fatalf("seed %d: %d of %d bytes arrived, or others", seed, len(p.arrived), len(sent))
		}
	}
}

// What a gateway would not say is refused, and what it says comes back.
func TestFlowIsChecked(t *testing.T) {
	good := Flow{Function: starling.FunctionRef{Account: "acme", Name: "fn"}, Network: "db", Version: 7, To: netip.MustParseAddrPort("10.0.0.5:80"), Began: 5,
		Sent: 10, Taken: 20, Unsent: 3, Unwritten: 4}
	raw, err := Encode(good)
	if err != nil || len(raw) > MessageMax {
		t.Fatal(len(raw), err)
	}
	var back Flow
	if err := Decode(raw, &back); err != nil || !reflect.DeepEqual(back, good) || back.Check() != nil {
		t.Fatalf("%+v, %v", back, err)
	}
	for name, change := range map[string]func(*Flow){
		"fewer than none unsent":    func(f *Flow) { f.Unsent = -1 },
		"fewer than none unwritten": func(f *Flow) { f.Unwritten = -1 },
		"more than fits unsent":     func(f *Flow) { f.Unsent = WaitMax + 1 },
		"more than fits unwritten":  func(f *Flow) { f.Unwritten = WaitMax + 1 },
		"no address":                func(f *Flow) { f.To = netip.AddrPort{} },
	} {
		bad := good
		change(&bad)
		if starling.KindOf(bad.Check()) != starling.Invalid {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []any{Question{Token: Token{1}, Host: 3, Sent: 5}, Offer{Here: true, Network: starling.NetworkRef{Account: "a", Name: "n"}}, Wanted{true}, Flow{To: netip.MustParseAddrPort("10.0.0.5:80")}} {
		raw, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var flow Flow
		if Decode(raw, &flow) == nil && flow.Check() == nil && flow.Unsent+flow.Unwritten > 2*WaitMax {
			t.Errorf("%d bytes would follow", flow.Unsent+flow.Unwritten)
		}
		for _, m := range []any{&Question{}, &Offer{}, &Wanted{}} {
			_ = Decode(raw, m) // may fail, and does not panic
		}
	})
}

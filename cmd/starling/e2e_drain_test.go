package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"starling"
	"starling/vpcproxy/netns"
)

// echoFunction sends numbers over one connection, and wants them back, for as long as its event says.
const echoFunction = `
import socket, struct, time

def handler(event, context):
    s = socket.create_connection(("10.7.0.10", 9100), timeout=20)
    end, n, gap = time.monotonic() + event["seconds"], 0, 0
    while time.monotonic() < end:
        n, at = n + 1, time.monotonic()
        s.sendall(struct.pack(">Q", n))
        back = b""
        while len(back) < 8:
            more = s.recv(8 - len(back))
            if not more:
                return {"echoes": n, "error": "end"}
            back += more
        if struct.unpack(">Q", back)[0] != n:
            return {"echoes": n, "error": "another number"}
        gap = max(gap, time.monotonic() - at)
        time.sleep(0.002)
    return {"echoes": n, "gap": gap, "error": ""}
`

// TestE2EDrainedGatewayGivesItsConnections empties the gateway that carries a function's connection, ends its process, and the
// connection goes on at the gateway beside it.
func TestE2EDrainedGatewayGivesItsConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	tenant := newNetTenant(t, "acme")
	listenEcho(t, tenant)
	file := filepath.Join(t.TempDir(), "uplinks.json")
	text := fmt.Sprintf(`{"acme/db": {"namespace": "/proc/%d/fd/%d"}}`, os.Getpid(), tenant.uplink.Fd())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--uplinks", file, "--handover", filepath.Join(t.TempDir(), "gateways")}
	gateway := testKind{roles: "gateway", args: args}
	w := newNetWorld(t, starling.IsolationProcess, testKind{roles: "manager,frontend,scheduler,host"}, gateway, gateway)
	w.account(t, "acme")
	w.deployNet(t, "acme", "echo", "main.py", echoFunction, "db")
	var a struct {
		Echoes int
		Gap    float64
		Error  string
	}
	w.call(t, "acme", "echo", `{"seconds":0.1}`, &a) // the sandbox, the grant and the connection to the gateway
	if a.Error != "" || a.Echoes == 0 {
		t.Fatalf("before: %+v", a)
	}
	type answer struct {
		text string
		err  error
	}
	answered, bin := make(chan answer, 1), starlingBinary(t)
	go func() {
		text, err := tryCLI(bin, w.env["acme"], "invoke", "echo", `{"seconds":6}`)
		answered <- answer{text, err}
	}()
	from, to := w.carrying(t)
	began := time.Now()
	starlingCLI(t, w.admin, "node", "drain", from.name, "--wait", "20s")
	took := time.Since(began)
	from.kill(t)
	over := <-answered
	if over.err != nil {
		t.Fatal("over the drain and the end of its gateway: ", over.err)
	}
	if err := json.Unmarshal([]byte(over.text), &a); err != nil || a.Error != "" {
		t.Fatalf("over the drain and the end of its gateway: %+v, %v", a, err)
	}
	if moved := to.metric(t, "starling_gateway_resumed_total"); moved != 1 {
		t.Errorf("%v connections went on at %s", moved, to.name)
	}
	t.Logf("empty after %v; %d numbers came back, the longest on its way for %.1f ms", took.Round(time.Millisecond), a.Echoes, a.Gap*1000)
}

// carrying waits for the one flow there is, and returns the gateway that carries it and the other.
func (w *netWorld) carrying(t *testing.T) (one, other *testNode) {
	t.Helper()
	a, b := w.nodes[1], w.nodes[2]
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if a.metric(t, "starling_gateway_flows") == 1 {
			return a, b
		}
		a, b = b, a
	}
	t.Fatal("no gateway carries the flow")
	return nil, nil
}

// listenEcho has the tenant send everything back on port 9100.
func listenEcho(t *testing.T, tenant *netTenant) {
	t.Helper()
	var l net.Listener
	if err := netns.Do(tenant.inside, func() (err error) {
		l, err = net.Listen("tcp4", "0.0.0.0:9100")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

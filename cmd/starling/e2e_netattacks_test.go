package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// lurkFunction listens on an abstract socket of its own, tries those of others, and speaks with sources that are not its own.
const lurkFunction = `
import fcntl, socket, struct

own = socket.socket(socket.AF_UNIX)
own.bind("\0" + NAME)
own.listen()

def attempt(f):
    try:
        return f()
    except Exception as e:
        return "error: %s %s" % (type(e).__name__, e)

def knock(name):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(2)
    s.connect("\0" + name)
    return "reached"

def speak(source):
    s = socket.socket()
    s.settimeout(5)
    for option in (15, 19):  # IP_FREEBIND, IP_TRANSPARENT: the second needs a capability
        attempt(lambda: s.setsockopt(socket.IPPROTO_IP, option, 1))
    if source:
        s.bind((source, 0))
    s.connect(("10.7.0.10", 8080))
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    text = b""
    while True:
        more = s.recv(4096)
        if not more:
            return text.decode().split("\r\n\r\n")[-1]
        text += more

def interface(request):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(s, request, struct.pack("16sH14s", b"lo", 2, socket.inet_aton("0.0.0.0") * 3))
    return "changed"

def handler(event, context):
    return {"knock": {n: attempt(lambda: knock(n)) for n in event["knock"]},
            "speak": {s: attempt(lambda: speak(s)) for s in event["speak"]},
            "interface": {str(r): attempt(lambda: interface(r)) for r in event["interface"]},
            "listed": attempt(lambda: open("/proc/net/unix").read())}
`

// TestE2ENeighboursAreNotHeardOrImitated has a function knock at abstract sockets of its host and of its neighbour (row D4 of the
// list of attacks), and speak as an address that is not the gateway's (D6).
func TestE2ENeighboursAreNotHeardOrImitated(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	t.Parallel()
	byEachMeans(t, (*netWorld).hidesNeighbours)
}

func (w *netWorld) hidesNeighbours(t *testing.T) {
	t.Helper()
	hosts := fmt.Sprintf("starling-host-%d", os.Getpid())
	l, err := net.Listen("unix", "@"+hosts)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type answer struct {
		Knock, Speak, Interface map[string]string
		Listed                  string
	}
	var neighbour, a answer
	for _, account := range []string{"zeta", "acme"} {
		w.deployNet(t, account, "lurk", "main.py", strings.Replace(lurkFunction, `NAME`, `"`+account+`-lurks"`, 1), "db")
	}
	w.call(t, "zeta", "lurk", `{"knock":["zeta-lurks"],"speak":[],"interface":[]}`, &neighbour)
	const siocsifaddr, siocsifhwaddr, siocsifflags = 0x8916, 0x8924, 0x8914
	w.call(t, "acme", "lurk", fmt.Sprintf(`{"knock":["acme-lurks","zeta-lurks",%q],"speak":["","10.7.0.66","10.7.0.2","8.8.8.8"],"interface":[%d,%d,%d]}`, hosts, siocsifaddr, siocsifhwaddr, siocsifflags), &a)
	if neighbour.Knock["zeta-lurks"] != "reached" || a.Knock["acme-lurks"] != "reached" {
		t.Fatalf("nobody reaches their own socket: %v, %v", neighbour.Knock, a.Knock)
	}
	for _, name := range []string{"zeta-lurks", hosts} {
		if says := a.Knock[name]; !strings.HasPrefix(says, "error:") || strings.Contains(a.Listed, name) {
			t.Errorf("%s: %s; listed: %s", name, says, a.Listed)
		}
	}
	if !strings.HasPrefix(a.Speak[""], "acme hears 10.7.0.2:") {
		t.Fatalf("as itself the function is answered %q", a.Speak[""])
	}
	for source, says := range a.Speak {
		if !strings.HasPrefix(says, "acme hears 10.7.0.2:") && !strings.HasPrefix(says, "error:") {
			t.Errorf("as %s the function is answered %q", source, says)
		}
	}
	for request, says := range a.Interface {
		if !strings.HasPrefix(says, "error:") {
			t.Errorf("ioctl %s: %s", request, says)
		}
	}
}

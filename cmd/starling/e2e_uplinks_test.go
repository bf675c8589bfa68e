package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"starling"
	"starling/vpcproxy/netns"
)

// cable is the operator's interface in TestE2EUplinksByConfiguration, named so that the test may run twice on one machine. It lies in the machine's own
// namespace without an address, and is down there: nothing goes over it but in the gateway's namespace.
var cable = fmt.Sprint("starlt", os.Getpid())

// layCable has a cable end in the operator's namespace whose other end is the tenant's 10.7.0.10.
func layCable(t *testing.T, tenant *netTenant) {
	t.Helper()
	at := netlink.NewLinkAttrs()
	at.Name = cable
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: at, PeerName: "cable", PeerNamespace: netlink.NsFd(tenant.inside.Fd())}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		link, err := netlink.LinkByName(cable)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Errorf("the cable was not given back: %v", err)
		}
	})
	if err := netns.Do(tenant.inside, func() error {
		old, errOld := netlink.LinkByName("eth0")
		link, err := netlink.LinkByName("cable")
		addr, errAddr := netlink.ParseAddr("10.7.0.10/24")
		if err := errors.Join(errOld, err, errAddr); err != nil {
			return err
		}
		return errors.Join(netlink.LinkDel(old), netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
	}); err != nil {
		t.Fatal(err)
	}
}

// An uplinkWorld is a host, and a gateway that has the cable of acme's network by its file.
type uplinkWorld struct {
	*netWorld
	file string
}

var cabled = `{"acme/db": {"device": "` + cable + `", "addresses": ["10.7.0.2/24"], "gateway": "10.7.0.10"}}`

func (w *uplinkWorld) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(w.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// shows waits until 'starling node uplinks' shows a text, and returns all.
func (w *uplinkWorld) shows(t *testing.T, text string) string {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command(starlingBinary(t), "node", "uplinks", "--admin", w.nodes[1].health)
		out, err := cmd.CombinedOutput()
		if err == nil && strings.Contains(string(out), text) {
			return string(out)
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(w.nodes[1].dir + ".log")
			t.Fatalf("no %q: %v\n%s\n%s", text, err, out, log)
		}
	}
}

// reaches waits until a function reaches the tenant's server, or does not.
func (w *uplinkWorld) reaches(t *testing.T, want bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var a netAnswer
		w.call(t, "acme", "net", `{"get":["http://10.7.0.10:8080/"]}`, &a)
		got := a.Get["http://10.7.0.10:8080/"]
		if strings.HasPrefix(got, "acme hears 10.7.0.2:") == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("reached: %q, wanted %v", got, want)
		}
	}
}

// hangup sends SIGHUP to the gateway.
func (w *uplinkWorld) hangup(t *testing.T) {
	t.Helper()
	if err := w.nodes[1].cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// TestE2EUplinksByConfiguration plugs a gateway process in by its file: a function reaches its network, also after the gateway was killed and started again; the file is
// read again at SIGHUP, whole or not at all; the device is given back.
func TestE2EUplinksByConfiguration(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	tenant := newNetTenant(t, "acme")
	layCable(t, tenant)
	w := &uplinkWorld{file: filepath.Join(t.TempDir(), "uplinks.json")}
	w.write(t, cabled)
	w.netWorld = newNetWorld(t, starling.IsolationProcess, testKind{roles: "manager,frontend,scheduler,host"}, testKind{roles: "gateway", args: []string{"--uplinks", w.file}})
	w.account(t, "acme")
	w.deployNet(t, "acme", "net", "main.py", netFunction, "db")
	namespace := regexp.MustCompile(`/run/netns/starling-\S+-acme\.db`).FindString(w.shows(t, "device "+cable))
	if _, err := os.Stat(namespace); err != nil {
		t.Errorf("the namespace that is shown: %v", err)
	}
	w.reaches(t, true)

	w.nodes[1].kill(t)
	if _, err := net.InterfaceByName(cable); err == nil {
		t.Error("a killed gateway gave the device back: then nothing is shown of what follows")
	}
	w.nodes[1].start(t)
	w.nodes[1].ready(t, 30*time.Second)
	w.reaches(t, true)

	w.write(t, "{\n  \"acme/db\": {\"device\": \""+cable+"\", \"address\": []}}")
	w.hangup(t)
	if out := w.shows(t, "line 2: acme/db: address: unknown key"); !strings.Contains(out, "plugged in") {
		t.Errorf("after a bad file:\n%s", out)
	}
	w.reaches(t, true)
	w.doctorSays(t, "line 2: acme/db: address: unknown key")

	w.write(t, strings.Replace(cabled, cable, "starltnone", 1))
	w.hangup(t)
	w.shows(t, "there is no device starltnone")
	w.reaches(t, false)
	w.doctorSays(t, "there is no device starltnone")
	if _, err := net.InterfaceByName(cable); err != nil {
		t.Errorf("the device was not given back: %v", err)
	}
	w.write(t, cabled)
	w.hangup(t)
	w.shows(t, "plugged in")
	w.reaches(t, true)

	w.nodes[1].stop()
	if _, err := os.Stat(namespace); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %s, %v", namespace, err)
	}
}

// doctorSays looks for a sentence in what the doctor says of the file and the gateway.
func (w *uplinkWorld) doctorSays(t *testing.T, text string) {
	t.Helper()
	out, _ := exec.Command(starlingBinary(t), "doctor", "--uplinks", w.file, "--admin", strings.TrimPrefix(w.nodes[1].health, "http://"), "-o", "json").Output() // it fails where functions cannot run
	var all []finding
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var said []string
	for _, f := range all {
		if f.Name == "uplinks of the gateway" {
			said = append(said, fmt.Sprintf("%s: %s", f.Level, f.Detail))
		}
	}
	if !strings.Contains(strings.Join(said, "\n"), text) {
		t.Errorf("the doctor says of the uplinks: %q", said)
	}
}

package vmpool_test

import (
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/kata"
	"starling/vmpool/kata/katatest"
)

var clones = flag.Int("clones", 6, "microVMs whose identities are compared")

// microVMs returns an open pool over the Kata driver, of which every clone is a microVM.
func microVMs(t testing.TB, sizes map[starling.Runtime]int) (*vmpool.Pool, *kata.Driver) {
	t.Helper()
	if testing.Short() {
		t.Skip("microVMs are slow without hardware; run it without -short")
	}
	cfg := katatest.Config(t)
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d := kata.New(cfg)
	return openPool(t, vmpool.PoolConfig{Driver: d, Log: log, ReadyTime: katatest.Patience, Sizes: sizes}, d), d
}

// TestMicroVMInstances is TestSandboxedInstances with a microVM for each instance.
func TestMicroVMInstances(t *testing.T) {
	p, d := microVMs(t, map[starling.Runtime]int{starling.Python311: 1, starling.NodeJS20: 1, starling.Provided: 1})
	instancesWork(t, p, 20*time.Second) // emulated, on a quarter of a CPU
	t.Run("layers", func(t *testing.T) { layersWork(t, p, 20*time.Second) })
	if a := d.Accel(); a != "kvm" && a != "tcg" {
		t.Errorf("the driver does not say what runs its VMs: %q", a)
	}
}

// Functions that tell everything a clone could share with its template.
const (
	pythonSelf = `
import os, random, uuid, time, secrets, socket, tempfile
def tell(e, c):
    return {"time": time.time(), "host": socket.gethostname(), "values": {
        "urandom": os.urandom(16).hex(), "random": repr(random.random()), "uuid4": str(uuid.uuid4()), "uuid1": str(uuid.uuid1()),
        "secrets": secrets.token_hex(), "machine": open("/etc/machine-id").read().strip(), "temp": next(tempfile._get_candidate_names())}}
`
	nodeSelf = `
const crypto = require('crypto'), fs = require('fs'), os = require('os');
function urandom() { const b = Buffer.alloc(16); fs.readSync(fs.openSync('/dev/urandom'), b); return b.toString('hex'); }
exports.tell = async () => ({ time: Date.now() / 1000, host: os.hostname(), values: {
  random: String(Math.random()), uuid: crypto.randomUUID(), bytes: crypto.randomBytes(16).toString('hex'),
  web: crypto.webcrypto.getRandomValues(new Uint32Array(4)).join(), urandom: urandom(),
  machine: fs.readFileSync('/etc/machine-id', 'latin1').trim() } });
`
)

// self is what such a function says.
type self struct {
	Time   float64
	Host   string
	Values map[string]string
}

// TestClonesAreThemselves: what is random in one clone is in no other, each has a name and machine-id of its own, and the clock
// is right, also after a pause.
func TestClonesAreThemselves(t *testing.T) {
	p, _ := microVMs(t, map[starling.Runtime]int{starling.Python311: 1, starling.NodeJS20: 1})
	for rt, code := range map[starling.Runtime][2]string{starling.Python311: {"self.py", pythonSelf}, starling.NodeJS20: {"self.js", nodeSelf}} {
		t.Run(string(rt), func(t *testing.T) {
			v, dir := version(t, rt, "self.tell", code[0], code[1])
			for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
				os.Chmod(up, 0o755)
			}
			seen, worst := map[string]bool{}, 0.0
			var mu sync.Mutex
			var group sync.WaitGroup
			todo := make(chan struct{}, *clones)
			for range *clones {
				todo <- struct{}{}
			}
			close(todo)
			for range 2 {
				group.Go(func() {
					for range todo {
						said, off := told(t, p, v, dir)
						mu.Lock()
						worst = max(worst, off)
						said.Values["host"] = said.Host
						for what, value := range said.Values {
							if value == "" || seen[what+value] {
								t.Errorf("a second clone has %s %q", what, value)
							}
							seen[what+value] = true
						}
						mu.Unlock()
					}
				})
			}
			group.Wait()
			t.Logf("%d clones: %d distinct values of %d kinds; clocks at most %.1f ms off", *clones, len(seen), len(seen)/max(*clones, 1), worst*1000)
			if worst > 0.05 {
				t.Errorf("a clock is %.1f ms off", worst*1000)
			}
		})
	}
}

// told calls the function of a new instance, pauses it, calls it again, and returns what it said first and how far its clock was
// off: the shorter of both distances between what it said and when it was asked and answered.
func told(t *testing.T, p *vmpool.Pool, v *starling.Version, dir string) (first self, off float64) {
	i, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: dir, InitTimeout: time.Minute})
	if err != nil {
		t.Error(err)
		return self{Values: map[string]string{}}, 0
	}
	defer i.Close()
	for n := range 2 {
		asked := seconds(time.Now())
		out, a, _ := call(t, i, "1", func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(time.Minute) })
		answered := seconds(time.Now())
		var s self
		if err := json.Unmarshal([]byte(a.String()), &s); err != nil {
			t.Errorf("it says %q (%s)", a.String(), out.Error)
			return self{Values: map[string]string{}}, 0
		}
		if s.Time < asked || s.Time > answered {
			off = max(off, min(math.Abs(s.Time-asked), math.Abs(s.Time-answered)))
		}
		if n == 0 {
			first = s
			for limit := time.Now().Add(10 * time.Second); !i.Frozen() && time.Now().Before(limit); {
				time.Sleep(5 * time.Millisecond)
			}
			time.Sleep(200 * time.Millisecond) // paused: a clock that stood still is off by this
		}
	}
	return first, off
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// TestFiguresOfMicroVMs prints how long a pooled clone takes to its first answer. It asserts no speed: -figures 50 says how often.
func TestFiguresOfMicroVMs(t *testing.T) {
	if *figures == 0 {
		t.Skip("for measuring: -args -figures 50")
	}
	p, _ := microVMs(t, map[starling.Runtime]int{starling.Python311: 1})
	v, dir := version(t, starling.Python311, "main.echo", "main.py", "def echo(e, c): return e\n")
	for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		os.Chmod(up, 0o755)
	}
	var first, warm []time.Duration
	for range *figures {
		for p.Stock()[starling.Python311] == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond) // the clone that follows would be measured with it
		begun := time.Now()
		i := start(t, p, v, dir, vmpool.DiscardLogs{})
		call(t, i, "1")
		first = append(first, time.Since(begun))
		for range 10 {
			begun = time.Now()
			call(t, i, "1")
			warm = append(warm, time.Since(begun))
		}
		i.Close()
	}
	t.Logf("claim of a running clone to its first answer: p50 %v, p99 %v", quantile(first, 0.5), quantile(first, 0.99))
	t.Logf("warm call: p50 %v, p99 %v", quantile(warm, 0.5), quantile(warm, 0.99))
}

var figures = flag.Int("figures", 0, "clones to measure")

func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))].Round(100 * time.Microsecond)
}

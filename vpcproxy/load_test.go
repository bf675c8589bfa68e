package vpcproxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/netns"
)

// wide is a world in which no limit is met.
func wide(b testing.TB) *world {
	limits := flowtable.Limits{Conns: 1_000_000, Rate: 1_000_000}
	w := newWorld(b, 1, func(c *gateway.Config) { c.AccountLimits, c.FunctionLimits = limits, limits })
	for _, n := range w.networks {
		n.RateMax, n.ConnMax = 100_000, 100_000
	}
	return w
}

// A dialler connects code to a server of the tenant.
type dialler func(to string) (net.Conn, error)

// ways are the function's, and for comparison the gateway's own, without host, tunnel and gateway.
func (w *world) ways() map[string]dialler {
	s := w.connected("acme")
	uplink := w.tenants["acme"].uplink
	return map[string]dialler{
		"tunnel": func(to string) (net.Conn, error) { return s.dial("tcp", to) },
		"direct": func(to string) (net.Conn, error) {
			return netns.Dial(uplink, "tcp", netip.Addr{}, netip.MustParseAddrPort(to), 3*time.Second)
		},
	}
}

func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkStreams moves 512 MiB between code and a server over 1 and 64 connections. CPU is that of everybody in the process: code,
// host, gateway and server, and of code and server alone where it is direct.
func BenchmarkStreams(b *testing.B) {
	const total = 512 << 20
	w := wide(b)
	for name, dial := range w.ways() {
		for _, n := range []int64{1, 64} {
			for port, move := range map[string]func(net.Conn, int64) error{
				":8081": func(c net.Conn, n int64) error {
					_, err := io.CopyN(io.Discard, struct{ io.Reader }{c}, n)
					return err
				},
				":8082": upload,
			} {
				b.Run(fmt.Sprintf("%s/%d/%s", name, n, map[string]string{":8081": "down", ":8082": "up"}[port]), func(b *testing.B) {
					b.SetBytes(total)
					used := cpu()
					for b.Loop() {
						var wg sync.WaitGroup
						for range n {
							c, err := dial(serverAddr + port)
							must(b, err)
							wg.Go(func() {
								defer c.Close()
								if err := move(c, total/n); err != nil {
									b.Error(err)
								}
							})
						}
						wg.Wait()
					}
					b.ReportMetric((cpu()-used).Seconds()/(float64(b.N)*total/1e9), "cpu-s/GB")
				})
			}
		}
	}
}

// upload sends n bytes and waits until the server has them.
func upload(c net.Conn, n int64) error {
	block := make([]byte, 64<<10)
	for left := n; left > 0; {
		m, err := c.Write(block[:min(left, int64(len(block)))])
		if err != nil {
			return err
		}
		left -= int64(m)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && strings.TrimSpace(line) != strconv.FormatInt(n, 10) {
		return fmt.Errorf("the server has %q of %d bytes", line, n)
	}
	return err
}

// BenchmarkLatency is what the way adds: a byte and its echo on a connection, and a new connection with the server's first bytes.
func BenchmarkLatency(b *testing.B) {
	w := wide(b)
	ways := w.ways()
	times := map[string][]time.Duration{}
	conns := map[string]net.Conn{}
	for name, dial := range ways {
		c, err := dial(serverAddr + ":8080")
		must(b, err)
		defer c.Close()
		_, err = io.ReadFull(c, make([]byte, 5))
		must(b, err)
		conns[name] = c
	}
	for b.Loop() {
		for name, dial := range ways { // by turns, so that both meet the same machine
			at := time.Now()
			_, err := conns[name].Write([]byte{1})
			must(b, err)
			_, err = io.ReadFull(conns[name], make([]byte, 1))
			must(b, err)
			times[name+"-echo"] = append(times[name+"-echo"], time.Since(at))
			at = time.Now()
			c, err := dial(serverAddr + ":8080")
			must(b, err)
			_, err = io.ReadFull(c, make([]byte, 5))
			must(b, err)
			times[name+"-first"] = append(times[name+"-first"], time.Since(at))
			c.Close()
		}
	}
	for name, all := range times {
		report(b, name, all)
	}
}

// BenchmarkConnectionsAtOnce has 32 connect at once, each for its first bytes.
func BenchmarkConnectionsAtOnce(b *testing.B) {
	for name, dial := range wide(b).ways() {
		b.Run(name, func(b *testing.B) {
			var left atomic.Int64
			left.Store(int64(b.N))
			used := cpu()
			var wg sync.WaitGroup
			for range 32 {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						c, err := dial(serverAddr + ":8080")
						if err == nil {
							_, err = io.ReadFull(c, make([]byte, 5))
							c.Close()
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
			b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-µs/conn")
		})
	}
}

// rate reads for d and says how much came in a second.
func rate(b *testing.B, c net.Conn, d time.Duration) float64 {
	end, n := time.Now().Add(d), int64(0)
	buf := make([]byte, 256<<10)
	must(b, c.SetReadDeadline(end.Add(20*time.Second)))
	began := time.Now()
	for time.Now().Before(end) {
		m, err := c.Read(buf)
		must(b, err)
		n += int64(m)
	}
	return float64(n) / time.Since(began).Seconds() / 1e6
}

// BenchmarkSlow has one reader beside others of the same network that do not read, or a byte a second. Each time its rate is measured
// alone, beside them, and alone again.
func BenchmarkSlow(b *testing.B) {
	for _, slow := range []struct {
		name  string
		n     int
		trick bool
		fill  time.Duration
	}{{"stalled-1", 1, false, 2 * time.Second}, {"stalled-32", 32, false, 2 * time.Second}, {"byte-a-second-1000", 1000, true, 15 * time.Second}} {
		b.Run(slow.name, func(b *testing.B) {
			w := wide(b)
			s := w.connected("acme")
			for b.Loop() {
				quick, err := s.dial("tcp", serverAddr+":8081")
				must(b, err)
				rate(b, quick, time.Second)
				before := rate(b, quick, 2*time.Second)
				var others []net.Conn
				stop := make(chan struct{})
				var wg sync.WaitGroup
				for range slow.n {
					c, err := s.dial("tcp", serverAddr+":8081")
					must(b, err)
					others = append(others, c)
					if slow.trick {
						wg.Go(func() { trickle(c, stop) })
					}
				}
				time.Sleep(slow.fill) // until every buffer on the way is full: so long each has its share
				beside := rate(b, quick, 4*time.Second)
				close(stop)
				for _, c := range others {
					c.Close()
				}
				wg.Wait()
				time.Sleep(time.Second)
				after := rate(b, quick, 2*time.Second)
				quick.Close()
				b.ReportMetric(before, "before-MB/s")
				b.ReportMetric(beside, "beside-MB/s")
				b.ReportMetric(after, "after-MB/s")
				b.ReportMetric(2*beside/(before+after), "ratio")
			}
		})
	}
}

func trickle(c net.Conn, stop chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			if _, err := c.Read(make([]byte, 1)); err != nil {
				return
			}
		}
	}
}

// arrivals connects rate times a second for d, whatever becomes of it, and returns how long the server's first bytes took, and how many
// connections had none.
func arrivals(s *sandbox, rate int, d time.Duration) (times []time.Duration, refused int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	gap := time.Second / time.Duration(rate)
	for at, end := time.Now(), time.Now().Add(d); at.Before(end); at = at.Add(gap) {
		time.Sleep(time.Until(at))
		due := at
		wg.Go(func() {
			_, err := s.name(serverAddr + ":8080")
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused++
				return
			}
			times = append(times, took)
		})
	}
	wg.Wait()
	return times, refused
}

// BenchmarkFlood has one account begin connections at a hundred times its rate, 20 a second, beside another that begins 50 a second.
func BenchmarkFlood(b *testing.B) {
	w := wide(b)
	few := *w.networks[starling.NetworkRef{Account: "acme", Name: "db"}]
	few.RateMax = 20
	w.networks[few.Ref] = &few
	loud, calm := w.connected("acme"), w.connected("zeta")
	for b.Loop() {
		arrivals(calm, 50, 2*time.Second)
		alone, _ := arrivals(calm, 50, 10*time.Second)
		var flood sync.WaitGroup
		var let []time.Duration
		var refused int
		flood.Go(func() { let, refused = arrivals(loud, 2000, 11*time.Second) })
		time.Sleep(500 * time.Millisecond)
		beside, failed := arrivals(calm, 50, 10*time.Second)
		flood.Wait()
		report(b, "alone", alone)
		report(b, "beside", beside)
		b.ReportMetric(float64(failed), "failed")
		b.ReportMetric(float64(len(let)), "flood-let")
		b.ReportMetric(float64(refused), "flood-refused")
	}
}

// memory is what the machine and this process have in use, in KiB.
type memory struct{ machine, process, heap float64 }

func measure(b *testing.B) (m memory) {
	runtime.GC()
	debug.FreeOSMemory()
	time.Sleep(time.Second)
	field := func(file, name string) (kb float64) {
		text, err := os.ReadFile(file)
		must(b, err)
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				kb, err = strconv.ParseFloat(strings.Fields(rest)[0], 64)
				must(b, err)
			}
		}
		return kb
	}
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return memory{-field("/proc/meminfo", "MemAvailable"), field("/proc/self/status", "VmRSS"), float64(s.HeapAlloc+s.StackInuse) / 1024}
}

func (m memory) report(b *testing.B, since memory, n int, name string) {
	b.ReportMetric((m.machine-since.machine)/float64(n), name+"-machine-KiB")
	b.ReportMetric((m.process-since.process)/float64(n), name+"-process-KiB")
	b.ReportMetric((m.heap-since.heap)/float64(n), name+"-heap-KiB")
}

// BenchmarkIdleInstances attaches 2,000 sandboxes of one host to a network: what each costs while it does nothing, and how long attaching
// takes with so many there.
func BenchmarkIdleInstances(b *testing.B) { benchEachMeans(b, idleInstances) }

func idleInstances(b *testing.B, w *world) {
	const n = 2000
	for b.Loop() {
		start := measure(b)
		boxes := make([]*sandbox, n)
		for i := range boxes {
			boxes[i] = w.bare()
		}
		bare := measure(b)
		for _, s := range boxes {
			w.prepare(s)
		}
		prepared := measure(b)
		var attached []time.Duration
		for _, s := range boxes {
			as := w.attachment("acme", "db")
			at := time.Now()
			must(b, s.outlet.Connect(as))
			attached = append(attached, time.Since(at))
		}
		idle := measure(b)
		for _, s := range boxes {
			if got, err := s.name(serverAddr + ":8080"); got != "acme" {
				b.Fatal(got, err)
			}
		}
		bare.report(b, start, n, "namespace")
		prepared.report(b, bare, n, "prepared")
		idle.report(b, prepared, n, "attached")
		report(b, "attach", attached)
	}
}

// BenchmarkResidentNetworks has a gateway with 1,000 networks of as many accounts, all with the same addresses, and one flow to each.
func BenchmarkResidentNetworks(b *testing.B) {
	const n = 1000
	w := wide(b)
	for b.Loop() {
		start := measure(b)
		for i := range n {
			account := starling.AccountID(fmt.Sprintf("tenant%d", i))
			w.tenants[account] = newTenant(b, string(account))
			ref := starling.NetworkRef{Account: account, Name: "db"}
			net := starling.Network{Ref: ref, CIDRs: []string{"10.7.0.0/24"}}.WithDefaults()
			w.networks[ref] = &net
		}
		made := measure(b)
		at := time.Now()
		w.addGateway(w.ca, 20, nil)
		opened := time.Since(at)
		resident := measure(b)
		w.gateways = w.gateways[1:]
		boxes := make([]*sandbox, n)
		for i := range boxes {
			boxes[i] = w.connected(starling.AccountID(fmt.Sprintf("tenant%d", i)))
		}
		before := measure(b)
		var first, again []time.Duration
		for _, times := range []*[]time.Duration{&first, &again} {
			for i, s := range boxes {
				at := time.Now()
				if got, err := s.name(serverAddr + ":8080"); got != fmt.Sprintf("tenant%d", i) {
					b.Fatalf("tenant%d hears %q, %v", i, got, err)
				}
				*times = append(*times, time.Since(at))
			}
		}
		lines := measure(b)
		made.report(b, start, n, "tenant")
		resident.report(b, made, n, "resident")
		lines.report(b, before, n, "connection")
		report(b, "first", first)
		report(b, "again", again)
		b.ReportMetric(float64(opened.Milliseconds()), "open-ms")
	}
}

// BenchmarkDenied tries by turns an address that another account's network has and this one's does not, one that nobody has, and a node's:
// whether the answer's time tells them apart (row D5).
func BenchmarkDenied(b *testing.B) {
	w := wide(b)
	raise(b, w.tenants["zeta"].inside, "eth0", "10.8.0.10/24")
	zeta := *w.networks[starling.NetworkRef{Account: "zeta", Name: "db"}]
	zeta.CIDRs = append(zeta.CIDRs, "10.8.0.0/24")
	w.networks[zeta.Ref] = &zeta
	raise(b, w.tenants["zeta"].uplink, "up", "10.8.0.2/24")
	if got, err := w.connected("zeta").name("10.8.0.10:8080"); got != "zeta" {
		b.Fatal(got, err)
	}
	s := w.connected("acme")
	times := map[string][]time.Duration{}
	for b.Loop() {
		for name, to := range map[string]string{"anothers": "10.8.0.10:8080", "nobodys": "10.8.0.11:8080", "nodes": "10.7.0.99:8080"} {
			at := time.Now()
			if got, err := s.name(to); err == nil {
				b.Fatalf("%s: %q", name, got)
			}
			times[name] = append(times[name], time.Since(at))
		}
	}
	for name, all := range times {
		report(b, name, all)
	}
}

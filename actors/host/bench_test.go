package host_test

import (
	"bytes"
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/actors/host"
	"starling/cluster/identity"
	"starling/transport/quic"
)

// cpu is what this process used so far: frontend, host and the functions, which are Go funcs here.
func cpu() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkHop runs the same 1 KiB calls through the host in process and over QUIC on loopback. The difference of cpu-us/op is what the
// hop costs on both nodes together.
func BenchmarkHop(b *testing.B) {
	const callers = 64
	ca, err := identity.NewCA("bench", time.Now())
	if err != nil {
		b.Fatal(err)
	}
	endpoint := func(id starling.NodeID, roles starling.Roles) *quic.Endpoint {
		n, err := ca.Issue(identity.Grant{Node: id, Roles: roles}, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		return quic.New(quic.Config{Addr: "127.0.0.1:0", Identity: n})
	}
	h, f := endpoint(9, starling.RoleHost), endpoint(1, starling.RoleFrontend)
	r := newRig(b, func(c *host.Config) { c.MemoryMiB, c.InstanceMax = 128*callers, callers })
	defer r.close(b)
	r.Serve(h)
	for _, e := range []*quic.Endpoint{h, f} {
		if err := e.Listen(); err != nil {
			b.Fatal(err)
		}
		defer e.Close()
	}
	c := host.NewClient(f, func(starling.NodeID) string { return h.Addr() })
	defer c.Close()
	for n := range callers {
		r.mustStart(b, uint64(n+1), echo)
	}
	payload := bytes.Repeat([]byte("x"), 1024)
	for _, way := range []struct {
		name string
		via  invoker
	}{{"local", r}, {"quic", c}} {
		b.Run(way.name+"/c=64", func(b *testing.B) {
			b.ReportAllocs()
			before := cpu()
			var wg sync.WaitGroup
			for n := range callers {
				wg.Go(func() {
					l := lease(uint64(n+1), uint64(n+1), echo)
					inv := invocation(echo, "")
					inv.Payload, inv.ID[8] = payload, byte(n)
					for range (b.N + n) / callers {
						inv.Deadline = time.Now().Add(5 * time.Second)
						if out, err := way.via.Invoke(context.Background(), l, inv, nowhere{}); err != nil || out.Status != starling.Succeeded {
							b.Errorf("%+v %v", out, err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64((cpu()-before).Nanoseconds())/1000/float64(b.N), "cpu-us/op")
		})
	}
}

type nowhere struct{}

func (nowhere) Start(string, bool)          {}
func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

package vmpool_test

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
)

// cpu is what this process used so far, without the functions' own processes.
func cpu() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// nothing is a sink that drops the answer.
type nothing struct{}

func (nothing) Start(string, bool)          {}
func (nothing) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkWholeCall runs 1 KiB calls through n instances at once and reports the CPU of the host's side for each.
func BenchmarkWholeCall(b *testing.B) {
	p := plainPool(b, map[starling.Runtime]int{starling.Python311: 0, starling.NodeJS20: 0, starling.Provided: 0})
	goDir := goBootstrap(b, "./runtimeapi/testdata/echo")
	payload := `{"text":"` + strings.Repeat("x", 1012) + `"}`
	for _, c := range []struct {
		name    string
		rt      starling.Runtime
		handler string
		file    string
		code    string
	}{
		{"python", starling.Python311, "main.h", "main.py", "def h(event, context): return event"},
		{"node", starling.NodeJS20, "main.h", "main.js", "exports.h = async (event) => event"},
		{"go", starling.Provided, "bootstrap", "", ""},
	} {
		for _, n := range []int{1, 16} {
			b.Run(c.name+"/"+map[int]string{1: "c=1", 16: "c=16"}[n], func(b *testing.B) {
				v, dir := version(b, c.rt, c.handler)
				if c.file == "" {
					dir = goDir
				} else {
					v, dir = version(b, c.rt, c.handler, c.file, c.code)
				}
				var all []*vmpool.Instance
				for range n {
					all = append(all, start(b, p, v, dir, nil))
				}
				b.ReportAllocs()
				b.ResetTimer()
				before := cpu()
				var wg sync.WaitGroup
				for k, i := range all {
					wg.Go(func() {
						inv := &starling.Invocation{ID: newID(), Version: v.ID, Payload: []byte(payload), ContentType: "application/json"}
						for range (b.N + k) / n {
							inv.Deadline = time.Now().Add(3 * time.Second)
							if out, err := i.Invoke(inv, nothing{}); err != nil || out.Status != starling.Succeeded {
								b.Errorf("%+v %v", out, err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64((cpu()-before).Nanoseconds())/1000/float64(b.N), "host-us/op")
				for _, i := range all {
					i.Close()
				}
			})
		}
	}
}

package lean

import (
	"net"
	"runtime"
	"runtime/debug"
	"testing"
)

// BenchmarkCall is one echo of 1 KiB on a kept connection, its client included.
func BenchmarkCall(b *testing.B) {
	c := serve(b, Config{Handle: echo}).dial()
	request, answer := []byte(post(string(make([]byte, 1024)))), make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		c.nc.Write(request)
		if n, err := c.nc.Read(answer); n < 1024 || err != nil {
			b.Fatalf("got %d bytes, %v", n, err)
		}
	}
}

// BenchmarkIdle tells what a connection holds that waits for its next request: heap and stacks, without the kernel's part.
// Run it with -benchtime 1000x to 10000x; a connection needs two descriptors here.
func BenchmarkIdle(b *testing.B) {
	w := serve(b, Config{Handle: echo})
	conns := make([]net.Conn, 0, b.N)
	b.ResetTimer()
	before := held()
	for range b.N {
		c := w.dial()
		c.say(post("x"))
		c.hears("x")
		conns = append(conns, c.nc)
		c.r = nil
	}
	after := held()
	b.ReportMetric(float64(after-before)/float64(b.N), "B/conn")
	for _, nc := range conns {
		nc.Close()
	}
}

// held is what the process uses of heap and stacks, when all that can go is gone.
func held() int64 {
	for range 3 {
		runtime.GC()
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

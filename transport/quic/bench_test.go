package quic

import (
	"sync/atomic"
	"testing"

	"starling/transport"
)

// BenchmarkCall is one request and answer of 1 KiB between two nodes over one link.
func BenchmarkCall(b *testing.B) {
	ca := mustCA(b, "bench")
	server := listen(b, Config{Identity: node(b, ca, 1)}, func(e *Endpoint) {
		e.Handle(transport.ChannelInvoke, func(s transport.Stream) {
			l := transport.OpenLink(s, transport.LinkConfig{Inline: true})
			defer l.Close()
			l.Serve(func(batch []transport.Frame) {
				for _, f := range batch {
					l.Send(f.Kind, f.ID, f.Body)
				}
			})
		})
	})
	client := listen(b, Config{Identity: node(b, ca, 2)}, nil)
	for name, parallel := range map[string]int{"1": 0, "64": 32, "256": 128} {
		b.Run(name, func(b *testing.B) {
			links := transport.NewLinks(transport.LinksConfig{Endpoint: client, Channel: transport.ChannelInvoke, Link: transport.LinkConfig{Inline: true}})
			defer links.Close()
			body := make([]byte, 1024)
			var failed atomic.Int64
			b.ReportAllocs()
			one := func(dst []byte) []byte {
				f, err := links.Call(b.Context(), server.Addr(), 1, dst[:0], body)
				if err != nil {
					failed.Add(1)
					return dst
				}
				return f.Body
			}
			if parallel == 0 {
				var dst []byte
				for b.Loop() {
					dst = one(dst)
				}
			} else {
				b.SetParallelism(parallel)
				b.RunParallel(func(pb *testing.PB) {
					var dst []byte
					for pb.Next() {
						dst = one(dst)
					}
				})
			}
			if n := failed.Load(); n > 0 {
				b.Errorf("%d calls failed", n)
			}
		})
	}
}

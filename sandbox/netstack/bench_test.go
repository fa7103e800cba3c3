package netstack

import (
	"io"
	"net"
	"testing"
	"time"
)

// benchLinks runs b for every kind of link that this host can make.
func benchLinks(b *testing.B, bench func(b *testing.B, o Options)) {
	for _, link := range []Link{LinkTAP, LinkVeth} {
		b.Run(string(link), func(b *testing.B) {
			if link == LinkTAP {
				needTAP(b)
			}
			bench(b, Options{Link: link})
		})
	}
}

const chunkBytes = 64 << 20

func BenchmarkUpload(b *testing.B) {
	benchLinks(b, func(b *testing.B, o Options) {
		done := make(chan struct{})
		address := listen(b, hostV4, func(c *net.TCPConn) {
			for {
				if n, _ := io.CopyN(onlyWriter{io.Discard}, c, chunkBytes); n != chunkBytes {
					return
				}
				done <- struct{}{}
			}
		})
		c := newWorld(b, o).mustDial(b, "tcp", address)
		chunk := make([]byte, chunkBytes)
		b.SetBytes(chunkBytes)
		for b.Loop() {
			if _, err := c.Write(chunk); err != nil {
				b.Fatal(err)
			}
			<-done
		}
		reportRate(b)
	})
}

func BenchmarkDownload(b *testing.B) {
	benchLinks(b, func(b *testing.B, o Options) {
		chunk := make([]byte, chunkBytes)
		address := listen(b, hostV4, func(c *net.TCPConn) {
			for {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		})
		c := newWorld(b, o).mustDial(b, "tcp", address)
		buf := make([]byte, 256<<10)
		b.SetBytes(chunkBytes)
		for b.Loop() {
			for left := chunkBytes; left > 0; {
				n, err := c.Read(buf[:min(left, len(buf))])
				if err != nil {
					b.Fatal(err)
				}
				left -= n
			}
		}
		c.Close()
		reportRate(b)
	})
}

// onlyWriter hides io.Discard's small buffer from io.Copy.
type onlyWriter struct{ io.Writer }

func reportRate(b *testing.B) {
	b.ReportMetric(float64(b.N)*chunkBytes*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
}

// BenchmarkAttach is Attach and Close of one namespace, over and over.
func BenchmarkAttach(b *testing.B) {
	benchLinks(b, func(b *testing.B, o Options) {
		w := newWorld(b, o)
		var closing time.Duration
		for b.Loop() {
			start := time.Now()
			if err := w.att.Close(); err != nil {
				b.Fatal(err)
			}
			closing += time.Since(start)
			att, err := w.network.Attach(b.Context(), w.netns)
			if err != nil {
				b.Fatal(err)
			}
			w.att = att
		}
		perOp := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(b.N) }
		b.ReportMetric(perOp(b.Elapsed()-closing), "ms/attach")
		b.ReportMetric(perOp(closing), "ms/close")
		if err := w.att.Close(); err != nil {
			b.Fatal(err)
		}
	})
}

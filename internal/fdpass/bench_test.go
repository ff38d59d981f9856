package fdpass

import (
	"context"
	"testing"
)

// BenchmarkHandOut compares the ways to hand out one file, taken and closed, with a unary call that carries none.
func BenchmarkHandOut(b *testing.B) {
	files := marked(b, 1)
	target, _ := serve(b, ServerOptions{}, &service{files: files})
	b.Run("unary without a file", func(b *testing.B) {
		cc := dialPlain(b, target)
		for b.Loop() {
			if _, _, err := get(context.Background(), cc, 0, 0, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unary in band", func(b *testing.B) {
		cc := dial(b, target)
		var settled uint64
		for b.Loop() {
			conn, first, err := get(context.Background(), cc, 0, 1, settled)
			if err != nil {
				b.Fatal(err)
			}
			f, err := conn.Take(first)
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
			settled = conn.Settled()
		}
	})
	b.Run("stream in band", func(b *testing.B) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		st, conn := attach(b, ctx, dial(b, target))
		for b.Loop() {
			first, err := next(st, 0, 1, conn.Settled())
			if err != nil {
				b.Fatal(err)
			}
			f, err := conn.Take(first)
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	})
	b.Run("raw channel", func(b *testing.B) {
		s, c := sockets(b)
		go func() {
			for buf := make([]byte, 8); ; {
				if _, err := s.Read(buf); err != nil {
					return
				}
				if SendFDs(s, buf[:1], int(files[0].Fd())) != nil {
					return
				}
			}
		}()
		buf := make([]byte, 8)
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			_, got, err := RecvFDs(c, buf, 1)
			if err != nil || len(got) != 1 {
				b.Fatal(got, err)
			}
			got[0].Close()
		}
		s.Close()
	})
}

package worker

import (
	"bytes"
	"io"
	"testing"
)

// Whatever a child writes on its pipe, and whatever stands in a frame: an error, or values; no panic, and no memory beyond
// what came.
func FuzzFrames(f *testing.F) {
	var w bytes.Buffer
	l := newLink(&w, &w)
	if err := l.send(1, 7, append(blank(3), "abc"...)); err != nil {
		f.Fatal(err)
	}
	f.Add(w.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		l := newLink(bytes.NewReader(b), io.Discard)
		for {
			fr, err := l.recv()
			if err != nil {
				return
			}
			if len(fr.body) > len(b) {
				t.Fatalf("a body of %d bytes came out of %d", len(fr.body), len(b))
			}
		}
	})
}

// FuzzNumbers is the codec of numeric batches, which skips gob.
func FuzzNumbers(f *testing.F) {
	for _, v := range []any{&[]float32{1, 2}, &[][]float32{{1}, {2, 3}, nil}, &[][]int64{}, &[]byte{1, 2}} {
		b, err := wire.encode(nil, v)
		if err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0 && b[0] == asGob { // gob's own fuzzing is the library's
			return
		}
		var (
			f32 []float32
			f64 [][]float64
			i64 [][]int64
			raw [][]byte
		)
		for _, v := range []any{&f32, &f64, &i64, &raw} {
			_ = wire.decode(b, v)
		}
		if len(f32) > len(b) || len(f64) > 8*len(b)+8 {
			t.Errorf("%d and %d values out of %d bytes", len(f32), len(f64), len(b))
		}
	})
}

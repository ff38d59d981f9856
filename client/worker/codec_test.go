package worker

import (
	"bytes"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestCodec(t *testing.T) {
	type row struct {
		Name string
		Vec  Floats
	}
	nan := float32(math.Inf(-1))
	check(t, []float32{0, 1.5, nan})
	check(t, []float32(nil))
	check(t, []float32{})
	check(t, []byte("raw"))
	check(t, []float64{math.Pi})
	check(t, []int32{-1, 1 << 30})
	check(t, []int64{-1, 1 << 60})
	check(t, [][]float32{{1, 2}, nil, {}, {3}})
	check(t, [][]float32(nil))
	check(t, [][]byte{[]byte("a"), nil})
	check(t, [][]float64{{1}})
	check(t, [][]int32{{1}, {2, 3}})
	check(t, [][]int64{{7}})
	check(t, struct{}{})
	check(t, "text")
	check(t, 0)
	check(t, []row{{"a", Floats{1, 2}}, {"b", nil}})
}

func check[T any](t *testing.T, v T) {
	t.Helper()
	b, err := wire.encode(nil, &v)
	if err != nil {
		t.Errorf("encode %#v: %v", v, err)
		return
	}
	var got T
	if err := wire.decode(b, &got); err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("%#v came back as %#v, %v", v, got, err)
	}
	for n := range b {
		wire.decode(b[:n], new(T)) // a short value may be an error, never a panic
	}
	var other []uint16
	if err := wire.decode(b, &other); err == nil {
		t.Errorf("%T was decoded as []uint16", v)
	}
}

func TestFrames(t *testing.T) {
	var buf bytes.Buffer
	l := newLink(&buf, &buf)
	if err := l.send(request, 7, append(blank(4), "body"...)); err != nil {
		t.Fatal(err)
	}
	raw := bytes.Clone(buf.Bytes())
	f, err := l.recv()
	if err != nil || f.verb != request || f.num != 7 || string(f.body) != "body" {
		t.Fatalf("%+v, %v", f, err)
	}
	if _, err := l.recv(); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
	for i := range raw { // every flipped byte is seen
		bad := bytes.Clone(raw)
		bad[i] ^= 0x10
		if f, err := newLink(bytes.NewReader(bad), nil).recv(); !errors.Is(err, errFrame) {
			t.Errorf("byte %d flipped: %+v, %v", i, f, err)
		}
		if _, err := newLink(bytes.NewReader(raw[:i]), nil).recv(); err == nil {
			t.Errorf("%d bytes of %d were a frame", i, len(raw))
		}
	}
}

func TestTail(t *testing.T) {
	var to bytes.Buffer
	l := &tail{to: &shared{w: &to}}
	for range 4000 {
		l.Write([]byte("a line of talk\n"))
	}
	l.Write([]byte("the last\n"))
	if s := l.String(); !strings.HasSuffix(s, "talk\nthe last") || strings.Count(s, "\n") != tailLines-1 {
		t.Errorf("tail is %q", s)
	}
	if to.Len() != 4000*15+9 {
		t.Errorf("%d bytes were passed on", to.Len())
	}
}

func BenchmarkFloats(b *testing.B) {
	v := make([]float32, 1e6)
	b.SetBytes(4e6)
	b.ReportAllocs()
	for b.Loop() {
		buf, err := wire.encode(nil, &v)
		if err != nil {
			b.Fatal(err)
		}
		var back []float32
		if err := wire.decode(buf, &back); err != nil {
			b.Fatal(err)
		}
	}
}

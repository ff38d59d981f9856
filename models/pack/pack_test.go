package pack

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/zcstore/zcstore/shm/tensor"
)

// bits are float32s that cannot be told from each other by value alone: NaN with payloads, both zeros, subnormals.
func bits(n int) []float32 {
	f := make([]float32, n)
	for i := range f {
		f[i] = math.Float32frombits(uint32(i)*2654435761 + 1)
	}
	return f
}

func same(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

func TestRoundTrip(t *testing.T) {
	for _, nk := range [][2]int{{0, 0}, {0, 3}, {3, 0}, {1, 1}, {15, 2}, {16, 7}, {17, 5}, {48, 33}, {101, 64}} {
		for _, role := range []tensor.Role{tensor.Linear, tensor.LookupLinear, tensor.LinearT} {
			t.Run(fmt.Sprint(nk, role), func(t *testing.T) {
				shape := tensor.Shape{nk[0], nk[1]}
				if role == tensor.LinearT {
					shape = tensor.Shape{nk[1], nk[0]}
				}
				p, err := Of(role, shape)
				if err != nil {
					t.Fatal(err)
				}
				if p.N != nk[0] || p.K != nk[1] || (p.N+p.PadN)%16 != 0 || p.PadN > 15 {
					t.Errorf("got %+v", p)
				}
				plain, packed, back := bits(p.N*p.K), bits(p.Len()), make([]float32, p.N*p.K)
				if err := p.Pack(packed, plain, role); err != nil {
					t.Fatal(err)
				}
				for n := range p.N + p.PadN { // where each value has to be, from the definition
					for k := range p.K {
						want := float32(0)
						if n < p.N {
							want = plain[n*p.K+k]
							if role == tensor.LinearT {
								want = plain[k*p.N+n]
							}
						}
						if got := packed[(n/16*p.K+k)*16+n%16]; math.Float32bits(got) != math.Float32bits(want) {
							t.Fatalf("output %d, input %d is %v, want %v", n, k, got, want)
						}
					}
				}
				if err := p.Unpack(back, packed, role); err != nil || !same(back, plain) {
					t.Errorf("not the same again: %v", err)
				}
			})
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		role  tensor.Role
		shape tensor.Shape
	}{
		{tensor.Other, tensor.Shape{2, 2}}, {tensor.Lookup, tensor.Shape{2, 2}}, {tensor.Linear, tensor.Shape{4}},
		{tensor.Linear, tensor.Shape{2, 2, 2}}, {tensor.Linear, tensor.Shape{-1, 2}},
		{tensor.Linear, tensor.Shape{math.MaxInt, 1}}, {tensor.Linear, tensor.Shape{1 << 40, 1 << 40}}, {tensor.LinearT, tensor.Shape{1 << 40, 1 << 40}},
	} {
		if _, err := Of(c.role, c.shape); !errors.As(err, new(*Error)) {
			t.Errorf("%v %v: %v", c.role, c.shape, err)
		}
	}
	p, err := Of(tensor.Linear, tensor.Shape{3, 2})
	if err != nil {
		t.Fatal(err)
	}
	if p.Pack(make([]float32, 31), make([]float32, 6), tensor.Linear) == nil || p.Pack(make([]float32, 32), make([]float32, 7), tensor.Linear) == nil ||
		p.Unpack(make([]float32, 5), make([]float32, 32), tensor.Linear) == nil {
		t.Error("a wrong length was taken")
	}
	packed := make([]float32, 32)
	packed[3] = float32(math.Copysign(0, -1)) // output 3, input 0: padding that is not all zero bits
	if err := p.Unpack(make([]float32, 6), packed, tensor.Linear); err == nil {
		t.Error("padding that is not zero was taken")
	}
}

// Any weight of any size comes back as it was, and nothing is written outside of it.
func FuzzRoundTrip(f *testing.F) {
	f.Add(uint8(17), uint8(3), false, []byte{1, 2, 3, 4})
	f.Add(uint8(0), uint8(9), true, []byte{})
	f.Add(uint8(16), uint8(1), true, []byte{0, 0, 0xc0, 0x7f})
	f.Fuzz(func(t *testing.T, n, k uint8, turned bool, raw []byte) {
		role, shape := tensor.Linear, tensor.Shape{int(n), int(k)}
		if turned {
			role, shape = tensor.LinearT, tensor.Shape{int(k), int(n)}
		}
		p, err := Of(role, shape)
		if err != nil {
			t.Fatal(err)
		}
		plain := make([]float32, p.N*p.K)
		for i := range plain {
			var b uint32
			for j := range 4 {
				if len(raw) > 0 {
					b = b<<8 | uint32(raw[(4*i+j)%len(raw)])
				}
			}
			plain[i] = math.Float32frombits(b ^ uint32(i))
		}
		const canary = 42
		room := slices.Repeat([]float32{canary}, p.Len()+2)
		if err := p.Pack(room[1:1+p.Len()], plain, role); err != nil {
			t.Fatal(err)
		}
		back := slices.Repeat([]float32{canary}, len(plain)+2)
		if err := p.Unpack(back[1:1+len(plain)], room[1:1+p.Len()], role); err != nil {
			t.Fatal(err)
		}
		if !same(back[1:1+len(plain)], plain) {
			t.Error("not the same again")
		}
		if room[0] != canary || room[len(room)-1] != canary || back[0] != canary || back[len(back)-1] != canary {
			t.Error("wrote outside")
		}
	})
}

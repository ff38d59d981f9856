package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/zcstore/zcstore/shm/tensor"
)

// plain is n values of a dtype that cannot be told from each other by value alone: NaN with payloads, both zeros,
// subnormals. finite leaves out what p16-int8 has no number for.
func plain(n int, d tensor.DType, finite bool) []byte {
	b := make([]byte, n*d.Size())
	for i := range n {
		switch bits := uint32(i)*2654435761 + 1; d {
		case tensor.F32:
			if finite && bits>>23&0xff == 0xff {
				bits ^= 1 << 30
			}
			binary.LittleEndian.PutUint32(b[4*i:], bits)
		default:
			half := uint16(bits >> 16)
			if finite {
				half &^= 1 << 14
			}
			binary.LittleEndian.PutUint16(b[2*i:], half)
		}
	}
	return b
}

// at is a plain value as F32, from the definition of its dtype.
func at(b []byte, i int, d tensor.DType) float32 {
	switch d {
	case tensor.F32:
		return math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	case tensor.BF16:
		return math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
	}
	h := binary.LittleEndian.Uint16(b[2*i:])
	exp, frac := int(h>>10&31), float64(h&1023)
	v := math.Ldexp(1024+frac, exp-25)
	switch exp {
	case 0:
		v = math.Ldexp(frac, -24)
	case 31:
		v = math.Inf(1)
		if frac > 0 {
			v = math.NaN()
		}
	}
	return float32(math.Copysign(v, float64(int16(h))+0.5))
}

// nearest is the BF16 next to a finite value, by trying both neighbours in float64.
func nearest(f float32) uint16 {
	down := uint16(math.Float32bits(f) >> 16)
	value := func(h uint16) float64 { // the step after the largest finite one counts as 2^128
		v := float64(math.Float32frombits(uint32(h) << 16))
		if math.IsInf(v, 0) {
			return math.Copysign(math.Ldexp(1, 128), v)
		}
		return v
	}
	below, above := math.Abs(float64(f)-value(down)), math.Abs(value(down+1)-float64(f))
	if above < below || above == below && down&1 == 1 {
		return down + 1
	}
	return down
}

var (
	sizes  = [][2]int{{0, 0}, {0, 3}, {3, 0}, {1, 1}, {15, 2}, {16, 7}, {17, 5}, {48, 33}, {101, 64}, {33, 131}}
	dtypes = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16}
	roles  = []tensor.Role{tensor.Linear, tensor.LookupLinear, tensor.LinearT}
)

// Every value is where the definition says, in every form, of every dtype; exact forms come back as they were.
func TestForms(t *testing.T) {
	for _, form := range Forms {
		for _, nk := range sizes {
			for _, d := range dtypes {
				for _, role := range roles {
					t.Run(fmt.Sprint(form, nk, d, role), func(t *testing.T) { try(t, form, nk[0], nk[1], d, role) })
				}
			}
		}
	}
}

func try(t *testing.T, form Form, n, k int, d tensor.DType, role tensor.Role) {
	t.Helper()
	shape := tensor.Shape{n, k}
	if role == tensor.LinearT {
		shape = tensor.Shape{k, n}
	}
	p, err := Of(form, d, role, shape)
	if err != nil {
		t.Fatal(err)
	}
	src := plain(n*k, d, form == Int8)
	if p.N != n || p.K != k || (n+p.PadN)%16 != 0 || p.PadN > 15 || p.PlainBytes() != len(src) {
		t.Errorf("got %+v", p)
	}
	if size, err := tensor.SizeBytes(form.DType(), p.Shape()); err != nil || size != p.Bytes() {
		t.Errorf("shape %v has %d bytes, not %d: %v", p.Shape(), size, p.Bytes(), err)
	}
	const guard = 64
	room := bytes.Repeat([]byte{0xa5}, p.Bytes()+2*guard)
	packed := room[guard : guard+p.Bytes()]
	for i := range p.Panels() { // one at a time, and not in order
		at := (i*7 + 3) % p.Panels()
		if p.Panels()%7 == 0 {
			at = i
		}
		if err := p.PackPanels(packed[at*p.PanelBytes():][:p.PanelBytes()], src, at, at+1); err != nil {
			t.Fatal(err)
		}
	}
	whole := make([]byte, p.Bytes())
	if err := p.Pack(whole, src); err != nil || !bytes.Equal(whole, packed) {
		t.Fatalf("panel by panel is not as all at once (%v)", err)
	}
	for _, b := range append(room[:guard:guard], room[guard+p.Bytes():]...) {
		if b != 0xa5 {
			t.Fatal("wrote outside")
		}
	}
	value := func(n, k int) float32 { // 0 in the padding
		switch {
		case n >= p.N || k >= p.K:
			return 0
		case role == tensor.LinearT:
			return at(src, k*p.N+n, d)
		}
		return at(src, n*p.K+k, d)
	}
	for n := range n + p.PadN {
		panel := packed[n/16*p.PanelBytes():][:p.PanelBytes()]
		lane := 4 * (n % 16)
		var top float64
		for k := range k {
			top = max(top, math.Abs(float64(value(n, k))))
		}
		sum := int32(0)
		for k := range k + p.PadK {
			want := value(n, k)
			ok := false
			switch form {
			case F32:
				got := math.Float32frombits(binary.LittleEndian.Uint32(panel[64*k+lane:]))
				ok = math.Float32bits(got) == math.Float32bits(want) || got != got && want != want
			case BF16:
				got := binary.LittleEndian.Uint16(panel[64*(k/2)+lane+2*(k%2):])
				ok = want == want && got == nearest(want) || want != want && got&0x7f80 == 0x7f80 && got&0x7f != 0
			case Int8:
				got := int8(panel[64*(k/4)+lane+k%4])
				sum += int32(got)
				ok = top == 0 && got == 0 || math.Abs(float64(got)-float64(want)/top*127) <= 0.5+1e-9
			}
			if !ok {
				t.Fatalf("output %d, input %d is not that of %v", n, k, want)
			}
		}
		if form == Int8 {
			behind := panel[64*p.Lines():]
			scale, got := math.Float32frombits(binary.LittleEndian.Uint32(behind[lane:])), int32(binary.LittleEndian.Uint32(behind[64+lane:]))
			if scale != float32(top/127) || got != sum {
				t.Fatalf("output %d has scale %v and sum %d, want %v and %d", n, scale, got, float32(top/127), sum)
			}
		}
	}
	back := make([]byte, len(src))
	if err := p.Unpack(back, packed); (err == nil) != p.Exact() || p.Exact() && !bytes.Equal(back, src) {
		t.Errorf("not the same again: %v", err)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		form  Form
		d     tensor.DType
		role  tensor.Role
		shape tensor.Shape
	}{
		{F32, tensor.F32, tensor.Other, tensor.Shape{2, 2}}, {F32, tensor.F32, tensor.Lookup, tensor.Shape{2, 2}},
		{F32, tensor.F32, tensor.Linear, tensor.Shape{4}}, {F32, tensor.F32, tensor.Linear, tensor.Shape{2, 2, 2}},
		{F32, tensor.F32, tensor.Linear, tensor.Shape{-1, 2}}, {F32, tensor.F32, tensor.Linear, tensor.Shape{2, -1}},
		{F32, tensor.F32, tensor.Linear, tensor.Shape{math.MaxInt, 1}}, {F32, tensor.F32, tensor.Linear, tensor.Shape{1, math.MaxInt}},
		{BF16, tensor.F32, tensor.Linear, tensor.Shape{1 << 40, 1 << 40}}, {F32, tensor.F32, tensor.LinearT, tensor.Shape{1 << 40, 1 << 40}},
		{Int8, tensor.F32, tensor.Linear, tensor.Shape{1, MaxInt8Inputs + 1}}, {F32, tensor.I64, tensor.Linear, tensor.Shape{2, 2}},
		{0, tensor.F32, tensor.Linear, tensor.Shape{2, 2}}, {Int8 + 1, tensor.F32, tensor.Linear, tensor.Shape{2, 2}},
	} {
		if _, err := Of(c.form, c.d, c.role, c.shape); !errors.As(err, new(*Error)) {
			t.Errorf("%v %v %v %v: %v", c.form, c.d, c.role, c.shape, err)
		}
	}
	p, err := Of(F32, tensor.F32, tensor.Linear, tensor.Shape{3, 2})
	if err != nil {
		t.Fatal(err)
	}
	packed, back := make([]byte, 128), make([]byte, 24)
	if p.Pack(make([]byte, 127), back) == nil || p.Pack(packed, make([]byte, 25)) == nil || p.Unpack(make([]byte, 20), packed) == nil ||
		p.PackPanels(packed, back, 0, 2) == nil || p.PackPanels(packed, back, -1, 1) == nil || p.PackPanels(packed, back, 1, 0) == nil ||
		p.PackPanels(packed, back, 0, 0) == nil {
		t.Error("a wrong length was taken")
	}
	packed[4*3+3] = 0x80 // output 3, input 0: padding that is -0
	if err := p.Unpack(back, packed); err == nil {
		t.Error("padding that is not zero was taken")
	}
	p, err = Of(BF16, tensor.BF16, tensor.Linear, tensor.Shape{16, 1})
	if err != nil {
		t.Fatal(err)
	}
	packed = make([]byte, 64)
	packed[2] = 1 // input 1 of 1
	if err := p.Unpack(make([]byte, 32), packed); err == nil {
		t.Error("an input too many was taken")
	}
	sized, err := Sized(F32, 3, 2)
	if err != nil || sized.Bytes() != 128 || sized.Pack(make([]byte, 128), nil) == nil {
		t.Errorf("%+v, %v: packed without knowing of what", sized, err)
	}
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(-1))} {
		v, _ := tensor.FromFloat32s(tensor.Shape{1, 2}, []float32{1, bad})
		p, err := Of(Int8, v.DType, tensor.Linear, v.Shape)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Pack(make([]byte, p.Bytes()), v.Data); !errors.As(err, new(*Error)) {
			t.Errorf("%v in 8 bits: %v", bad, err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, f := range Forms {
		if got, err := ParseForm(f.String()); err != nil || got != f {
			t.Errorf("%v is read as %v, %v", f, got, err)
		}
	}
	if _, err := ParseForm("p17"); !errors.As(err, new(*Error)) {
		t.Error(err)
	}
}

// A weight of any size and any bytes is packed as the definition says and nowhere else.
func FuzzForms(f *testing.F) {
	f.Add(uint8(1), uint8(17), uint8(3), uint8(0), uint8(0))
	f.Add(uint8(2), uint8(0), uint8(9), uint8(1), uint8(1))
	f.Add(uint8(3), uint8(16), uint8(70), uint8(2), uint8(2))
	f.Fuzz(func(t *testing.T, form, n, k, d, role uint8) {
		try(t, Forms[int(form)%len(Forms)], int(n), int(k), dtypes[int(d)%len(dtypes)], roles[int(role)%len(roles)])
	})
}

// Any bytes at all: packed or refused, and back as they were where the form is exact.
func FuzzBytes(f *testing.F) {
	f.Add(uint8(0), uint8(0), uint8(3), []byte{0, 0, 0xc0, 0x7f, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add(uint8(2), uint8(1), uint8(1), []byte{1, 0, 0, 0x80, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, form, d, n uint8, raw []byte) {
		dtype := dtypes[int(d)%len(dtypes)]
		k := len(raw) / dtype.Size() / max(int(n), 1)
		p, err := Of(Forms[int(form)%len(Forms)], dtype, tensor.Linear, tensor.Shape{int(n), k})
		if err != nil {
			t.Fatal(err)
		}
		raw = raw[:p.PlainBytes()]
		packed, back := make([]byte, p.Bytes()), make([]byte, len(raw))
		if err := p.Pack(packed, raw); err != nil {
			if p.Form != Int8 {
				t.Fatal(err)
			}
			return
		}
		if p.Exact() {
			if err := p.Unpack(back, packed); err != nil || !bytes.Equal(back, raw) {
				t.Fatalf("not the same again: %v", err)
			}
		}
	})
}

func BenchmarkPack(b *testing.B) {
	for _, form := range Forms {
		for _, d := range dtypes {
			b.Run(fmt.Sprint(form, " of ", d), func(b *testing.B) {
				p, err := Of(form, d, tensor.Linear, tensor.Shape{768, 768})
				if err != nil {
					b.Fatal(err)
				}
				src, dst := plain(p.N*p.K, d, true), make([]byte, p.Bytes())
				b.SetBytes(int64(len(src)))
				for b.Loop() {
					if err := p.Pack(dst, src); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

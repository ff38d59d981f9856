package pack

import (
	"encoding/binary"
	"math"

	"github.com/zcstore/zcstore/shm/tensor"
)

// blockInputs is how many inputs of a panel are turned at a time: a multiple of what a line can hold.
const blockInputs = 64

// block is a part of a panel as F32, its outputs one after the other.
type block [Lanes][blockInputs]float32

// source is a plain weight from which one panel is read.
type source struct {
	P16
	plain []byte
	n     int // the panel's first output
}

// blocks calls f with the panel's values, block by block. What is past N or K is zero.
func (s *source) blocks(f func(k int, b *block)) {
	var b block
	lanes, size := min(Lanes, s.N-s.n), s.DType.Size()
	for k := 0; k < s.K; k += blockInputs {
		inputs := min(blockInputs, s.K-k)
		if inputs < blockInputs {
			b = block{}
		}
		if s.Role == tensor.LinearT {
			var line [Lanes]float32
			for i := range inputs {
				widen(line[:lanes], s.plain[((k+i)*s.N+s.n)*size:], s.DType)
				for l, v := range line {
					b[l][i] = v
				}
			}
		} else {
			for l := range lanes {
				widen(b[l][:inputs], s.plain[((s.n+l)*s.K+k)*size:], s.DType)
			}
		}
		f(k, &b)
	}
}

func (s *source) packF32(panel []byte) {
	s.blocks(func(k int, b *block) {
		for i := range min(blockInputs, s.K-k) {
			line := panel[(k+i)*lineBytes:][:lineBytes]
			for l := range b {
				binary.LittleEndian.PutUint32(line[4*l:], math.Float32bits(b[l][i]))
			}
		}
	})
}

func (s *source) packBF16(panel []byte) {
	s.blocks(func(k int, b *block) {
		for i := 0; i < min(blockInputs, s.K-k); i += 2 {
			line := panel[(k+i)/2*lineBytes:][:lineBytes]
			for l := range b {
				even, odd := RoundBF16(b[l][i]), RoundBF16(b[l][i+1])
				binary.LittleEndian.PutUint32(line[4*l:], uint32(even)|uint32(odd)<<16)
			}
		}
	})
}

func (s *source) packInt8(panel []byte) error {
	var top [Lanes]float32
	var bad error
	s.blocks(func(k int, b *block) {
		for l := range b {
			for i, v := range b[l] {
				v = max(v, -v)
				if !(v <= math.MaxFloat32) && bad == nil {
					bad = refuse("output %d, input %d is %v, and %v has finite values only", s.n+l, k+i, b[l][i], s.Form)
				}
				top[l] = max(top[l], v)
			}
		}
	})
	if bad != nil {
		return bad
	}
	var times [Lanes]float64
	var sums [Lanes]int32
	behind := panel[s.Lines()*lineBytes:]
	for l, m := range top {
		if m > 0 {
			times[l] = 127 / float64(m)
		}
		binary.LittleEndian.PutUint32(behind[4*l:], math.Float32bits(float32(float64(m)/127)))
	}
	s.blocks(func(k int, b *block) {
		for i := 0; i < min(blockInputs, s.K-k); i += 4 {
			line := panel[(k+i)/4*lineBytes:][:lineBytes]
			for l := range b {
				for j, v := range b[l][i:][:4] {
					q := int8(math.RoundToEven(float64(v) * times[l]))
					sums[l] += int32(q)
					line[4*l+j] = byte(q)
				}
			}
		}
	})
	for l, sum := range sums {
		binary.LittleEndian.PutUint32(behind[lineBytes+4*l:], uint32(sum))
	}
	return nil
}

// target is a plain weight to which one panel is written.
type target struct {
	P16
	plain []byte
	n     int
}

// unpack writes a panel that is exact: every value by itself, for nobody waits for it.
func (t *target) unpack(panel []byte) error {
	size, per := t.DType.Size(), forms[t.Form].per
	for k := range t.K + t.PadK {
		line := panel[k/per*lineBytes:][:lineBytes]
		for l := range Lanes {
			var bits uint32 // of an F32
			if t.Form == BF16 {
				bits = uint32(binary.LittleEndian.Uint16(line[4*l+k%per*2:])) << 16
			} else {
				bits = binary.LittleEndian.Uint32(line[4*l:])
			}
			n := t.n + l
			if n >= t.N || k >= t.K {
				if bits != 0 {
					return refuse("the padding of panel %d holds %#x for input %d", t.n/Lanes, bits, k)
				}
				continue
			}
			at := n*t.K + k
			if t.Role == tensor.LinearT {
				at = k*t.N + n
			}
			switch dst := t.plain[at*size:]; t.DType {
			case tensor.F32:
				binary.LittleEndian.PutUint32(dst, bits)
			case tensor.BF16:
				binary.LittleEndian.PutUint16(dst, uint16(bits>>16))
			case tensor.F16:
				binary.LittleEndian.PutUint16(dst, narrowF16(bits))
			}
		}
	}
	return nil
}

// widen makes F32 of as many values of bytes as dst has.
func widen(dst []float32, src []byte, d tensor.DType) {
	switch d {
	case tensor.F32:
		src = src[:4*len(dst)]
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case tensor.BF16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	case tensor.F16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = WidenF16(binary.LittleEndian.Uint16(src[2*i:]))
		}
	}
}

// RoundBF16 is the nearest BF16, of two the one that is even. NaN stays NaN, and what came from BF16 stays as it is.
func RoundBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if f != f {
		h := uint16(b >> 16)
		if h&0x7f == 0 { // all of the payload is in the half that goes
			h |= 0x40
		}
		return h
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// WidenF16 is exact: every F16, subnormal ones too, is an F32. NaN keeps its payload.
func WidenF16(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	rest := uint32(h & 0x7fff)
	switch {
	case rest >= 0x7c00: // infinity and NaN
		return math.Float32frombits(sign | 0x7f800000 | rest<<13)
	case rest < 0x400: // subnormal: rest times 2^-24
		f := float32(rest) * (1.0 / (1 << 24))
		return math.Float32frombits(sign | math.Float32bits(f))
	}
	return math.Float32frombits(sign | (rest<<13 + (127-15)<<23))
}

// narrowF16 undoes WidenF16.
func narrowF16(b uint32) uint16 {
	sign, exp, frac := uint16(b>>16&0x8000), int(b>>23&0xff)-127+15, uint16(b>>13&0x3ff)
	switch {
	case exp > 30:
		return sign | 0x1f<<10 | frac
	case exp > 0:
		return sign | uint16(exp)<<10 | frac
	}
	f := math.Float32frombits(b &^ (1 << 31))
	return sign | uint16(f*(1<<24))
}

package golden

// Noise is n values from -scale up to scale, the same in every language: test/golden/compute/make.py has it, too. They are exact
// when the scale is a power of two.
func Noise(seed uint32, n int, scale float32) []float32 {
	f := make([]float32, n)
	for i := range f {
		h := uint32(i) + seed*0x9e3779b9
		for _, mul := range []uint32{0x85ebca6b, 0xc2b2ae35} {
			h = (h ^ h>>16) * mul
		}
		h ^= h >> 16
		f[i] = (float32(h>>8)/(1<<23) - 1) * scale
	}
	return f
}

package cpu

import "golang.org/x/sys/cpu"

// tiers are the kernels for this processor, fastest first. The flags are set only where the system saves the registers.
var tiers = func() (t []*kernels) {
	c := &cpu.X86
	if c.HasAVX512F && c.HasAVX512DQ && c.HasAVX512BW && c.HasAVX512VL && c.HasBMI2 {
		k := kernelsAVX512
		if c.HasAVX512VNNI && c.HasAVX512BF16 {
			t = append(t, k.tiered("avx512bf16", tilesF32AVX512, tilesBF16DotAVX512, tilesInt8DotAVX512))
		}
		if c.HasAVX512VNNI {
			t = append(t, k.tiered("avx512vnni", tilesF32AVX512, tilesBF16WideAVX512, tilesInt8DotAVX512))
		}
		t = append(t, k.tiered("avx512", tilesF32AVX512, tilesBF16WideAVX512, tilesInt8WideAVX512))
	}
	if c.HasAVX2 && c.HasFMA && c.HasF16C {
		t = append(t, kernelsAVX2.tiered("avx2", tilesF32AVX2, tilesBF16WideAVX2, tilesInt8WideAVX2))
	}
	return t
}()

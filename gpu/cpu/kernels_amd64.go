package cpu

import "golang.org/x/sys/cpu"

// tiers are the kernels for this processor, fastest first. The flags are set only where the system saves the registers.
var tiers = func() (t []*kernels) {
	c := &cpu.X86
	if c.HasAVX512F && c.HasAVX512DQ && c.HasAVX512BW && c.HasAVX512VL && c.HasBMI2 {
		t = append(t, kernelsAVX512.index())
	}
	if c.HasAVX2 && c.HasFMA && c.HasF16C {
		t = append(t, kernelsAVX2.index())
	}
	return t
}()

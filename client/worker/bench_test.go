package worker

import "testing"

// What a call costs beside the work: a small one, and 25 rows of 128 floats there and back.
func BenchmarkCall(b *testing.B) {
	for _, m := range modes {
		for _, bb := range []struct {
			name string
			in   probeIn
		}{{"small", probeIn{}}, {"25x128", probeIn{Vec: make([]float32, 25*128)}}} {
			b.Run(m.String()+"/"+bb.name, func(b *testing.B) {
				p, err := Start(b.Context(), probes, probeArgs{}, Options{Mode: m})
				if err != nil {
					b.Fatal(err)
				}
				defer p.Close()
				b.ReportAllocs()
				for b.Loop() {
					if _, err := p.Call(b.Context(), bb.in); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// The one-shot form: a process from its start to its end.
func BenchmarkRun(b *testing.B) {
	for _, m := range modes {
		b.Run(m.String(), func(b *testing.B) {
			for b.Loop() {
				if _, err := Run(b.Context(), probes, probeArgs{}, probeIn{}, Options{Mode: m}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

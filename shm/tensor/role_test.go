package tensor

import "testing"

func TestRoleMerge(t *testing.T) {
	all := []Role{Other, Linear, LinearT, Conv, Lookup, LookupLinear}
	for _, r := range all {
		if back, err := ParseRole(r.String()); err != nil || back != r {
			t.Errorf("ParseRole(%q) = %v, %v", r, back, err)
		}
		for _, o := range all {
			a, aok := r.Merge(o)
			b, bok := o.Merge(r)
			if a != b || aok != bok {
				t.Errorf("%v+%v = %v,%v but %v+%v = %v,%v", r, o, a, aok, o, r, b, bok)
			}
		}
	}
	for _, tt := range []struct {
		a, b, want Role
		ok         bool
	}{
		{Linear, Lookup, LookupLinear, true},
		{LookupLinear, Linear, LookupLinear, true},
		{Other, Conv, Conv, true},
		{Linear, LinearT, 0, false},
		{Conv, Lookup, 0, false},
	} {
		if got, ok := tt.a.Merge(tt.b); got != tt.want || ok != tt.ok {
			t.Errorf("%v+%v = %v,%v, want %v,%v", tt.a, tt.b, got, ok, tt.want, tt.ok)
		}
	}
}

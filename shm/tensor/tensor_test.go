package tensor

import (
	"strings"
	"testing"
)

func TestDTypeSpelling(t *testing.T) {
	for d := F64; d.Valid(); d++ {
		got, err := ParseDType(d.String())
		if err != nil || got != d || d.Size() == 0 {
			t.Errorf("ParseDType(%q) = %v, %v; size %d", d.String(), got, err, d.Size())
		}
	}
	for _, bad := range []string{"", "f32", "F32 ", "FLOAT"} {
		if _, err := ParseDType(bad); err == nil {
			t.Errorf("ParseDType(%q) took it", bad)
		}
	}
}

func TestSizeBytes(t *testing.T) {
	tests := []struct {
		name  string
		dtype DType
		shape Shape
		want  int
		err   string
	}{
		{"scalar", F32, nil, 4, ""},
		{"matrix", F16, Shape{3, 5}, 30, ""},
		{"empty", I64, Shape{0, 7}, 0, ""},
		{"empty beside a huge dimension", I64, Shape{1 << 40, 0}, 0, ""},
		{"negative", F32, Shape{-1}, 0, "negative"},
		{"elements overflow", U8, Shape{1 << 40, 1 << 40}, 0, "overflows"},
		{"bytes overflow", F64, Shape{1 << 61}, 0, "overflows"},
		{"rank", U8, make(Shape, 65), 0, "rank 65"},
		{"no dtype", Invalid, Shape{1}, 0, "dtype(0)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := SizeBytes(tt.dtype, tt.shape)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Fatalf("got %d, %v; want %d", got, err, tt.want)
			}
		})
	}
}

func TestCastsShareMemory(t *testing.T) {
	vals := []float32{1, 2, 3, 4}
	v, err := FromFloat32s(Shape{2, 2}, vals)
	if err != nil {
		t.Fatal(err)
	}
	back, err := v.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	back[3] = 9
	if vals[3] != 9 {
		t.Error("the cast copied")
	}
	if _, err := v.Int64s(); err == nil {
		t.Error("F32 was taken as I64")
	}
	raw := bytesOf(make([]float32, 5)) // starts on 4 bytes, so one further does not
	off := View{DType: F32, Shape: Shape{4}, Data: raw[1:17]}
	if _, err := off.Float32s(); err == nil {
		t.Error("misaligned data was cast")
	}
	if _, err := New(F32, Shape{3}, raw[:11]); err == nil {
		t.Error("a short view was made")
	}
}

func TestFits(t *testing.T) {
	for _, tt := range []struct {
		got, want Shape
		fits      bool
	}{
		{Shape{2, 3}, Shape{2, 3}, true},
		{Shape{2, 3}, Shape{-1, 3}, true},
		{Shape{2, 3}, Shape{2, 4}, false},
		{Shape{2, 3}, Shape{2}, false},
		{Shape{}, Shape{}, true},
		{Shape{0}, Shape{0}, true},
		{Shape{1}, Shape{0}, false},
	} {
		if tt.got.Fits(tt.want) != tt.fits {
			t.Errorf("%v fits %v: %v", tt.got, tt.want, !tt.fits)
		}
	}
}

package units

import "testing"

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]uint64{"0": 0, "4096": 4096, "500MB": 500_000_000, "4GiB": 4 << 30, "1.5g": 3 << 29, "2 KiB": 2048, "7b": 7} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "MB", "-1", "1XB", "NaN", "inf", "1e30GB", "1 2"} {
		if got, err := ParseBytes(bad); err == nil {
			t.Errorf("ParseBytes(%q) = %d", bad, got)
		}
	}
}

func TestBytes(t *testing.T) {
	for in, want := range map[int]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 101 << 10: "101.0 KiB", 90868376: "86.7 MiB"} {
		if got := Bytes(in); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", in, got, want)
		}
	}
}

package units

import "testing"

// A size that is accepted is shown as a size that is accepted.
func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"0", "1", "4096", "1.5GiB", "10 MB", "-1", "1e30", "18446744073709551615", "16EiB", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if err != nil || n >= 1<<62 { // rounding may bring what is shown over the largest that is taken
			return
		}
		if _, err := ParseBytes(Bytes(n)); err != nil {
			t.Errorf("%q is %d bytes, shown as %q: %v", s, n, Bytes(n), err)
		}
	})
}

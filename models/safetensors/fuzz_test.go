package safetensors

import (
	"bytes"
	"os"
	"testing"
)

// FuzzParse: no input panics, Read and Parse agree, and what is accepted lies inside the file and survives encoding.
func FuzzParse(f *testing.F) {
	seeds := [][]byte{
		nil,
		file("{}", 0),
		file(`{"__metadata__":{"format":"pt","a\n\u00e9":"\ud83d\ude00"}}   `, 0),
		file(one(`"dtype":"F32","shape":[2,3],"data_offsets":[0,24]`), 24),
		file(`{"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"z":{"dtype":"I64","shape":[0,9],"data_offsets":[4,4]}}`, 6),
		file(one(`"dtype":"F64","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]`), 0),
	}
	for _, s := range seeds {
		f.Add(s)
	}
	if corpus, err := os.ReadDir("testdata/fuzz/FuzzParse"); err != nil || len(corpus) < 4 {
		f.Fatalf("%d committed seeds, %v", len(corpus), err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		r, rerr := Read(bytes.NewReader(b), int64(len(b)))
		if (err == nil) != (rerr == nil) {
			t.Fatalf("Parse: %v, Read: %v", err, rerr)
		}
		if err != nil {
			if _, ok := err.(*FormatError); !ok || err.Error() != rerr.Error() {
				t.Fatalf("Parse: %v, Read: %v", err, rerr)
			}
			return
		}
		if len(r.Entries) != len(h.Entries) || r.DataStart != h.DataStart {
			t.Fatal("Parse and Read differ")
		}
		if h.DataBytes() < 1<<24 {
			checkHeader(t, h, int64(len(b)))
		}
	})
}

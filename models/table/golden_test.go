package table

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/models/manifest"
)

var update = flag.Bool("update", false, "write the golden table anew; only together with a new Version")

const goldenFile = "testdata/version-2.table"

// The bytes of a table of version 2, as they were when it was defined: today's code writes them and reads them. Whoever changes
// this file changes what daemons and clients of different releases say to each other, and needs a new Version.
func TestCase54GoldenTable(t *testing.T) {
	m, digest := sample(t, 3)
	written, segs, locs := encode(t, m, digest)
	if *update {
		if err := os.WriteFile(goldenFile, written, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if Version != 2 || !bytes.Equal(golden, written) {
		t.Errorf("version %d writes other bytes than %s", Version, goldenFile)
	}
	tab, err := Open(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, gotSegs, gotLocs, err := tab.Manifest()
	if err != nil || tab.Digest() != digest || len(gotSegs) != len(segs) || len(gotLocs) != len(locs) {
		t.Fatalf("%v, %d segments, %d rows", err, len(gotSegs), len(gotLocs))
	}
	for i := range locs {
		if gotLocs[i] != locs[i] || !got.Tensors[i].Shape.Equal(m.Tensors[i].Shape) || got.Tensors[i].SHA256 != m.Tensors[i].SHA256 {
			t.Errorf("row %d reads as %v at %v", i, got.Tensors[i], gotLocs[i])
		}
	}
	// A later daemon's table, and one older than all: both numbers are named.
	for _, v := range []uint32{0, 1, 3, 1 << 31} {
		other := bytes.Clone(golden)
		binary.LittleEndian.PutUint32(other[8:], v)
		if _, err := Open(other); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "this program reads 2") {
			t.Errorf("version %d: %v", v, err)
		}
	}
	// Bits of the header that version 2 does not use are for later: a reader ignores them.
	later := bytes.Clone(golden)
	binary.LittleEndian.PutUint32(later[12:], 1<<7)
	if tab, err := Open(later); err != nil || tab.Digest() != (manifest.Digest(digest)) {
		t.Errorf("a flag of a later release: %v", err)
	}
}

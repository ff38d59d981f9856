// Package storetest is what every store has to do, as one suite: it runs over the store in the test's own process and over a
// daemon's socket, so the two cannot drift apart. It also has the invariants that hold after any fault (Invariants).
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Store is what the suite needs of a store. Errors have the kinds of proto/zcerr.
type Store interface {
	Put(ref string, replace bool, d *manifest.Draft) (*store.PutResult, error)
	Attach(ref string) (*Held, error)
	AttachAs(ref string, ask store.Ask) (*Held, error)
	List(name string, all bool) ([]store.VersionInfo, error)
	Show(ref string) (store.VersionInfo, error)
	Tag(source, target string, replace bool) (digest, previous manifest.Digest, err error)
	TagAs(source, target string, replace bool, form derive.Form) (digest, previous manifest.Digest, err error)
	Remove(ref string, all bool) (store.Removed, error)
	Holders(name string) ([]store.LeaseInfo, error)
	Verify(ref string) (*store.Verified, error)
	Status() (store.Status, error)
}

// Held is an attached version.
type Held struct {
	Ref     string
	Digest  manifest.Digest
	Tensors map[string][]byte // by first name; shared pages, until Release
	Sums    map[string]manifest.Digest
	Release func()

	Form    derive.Form
	Derived map[string][]byte // what was made of a tensor, by its first name, or of the value of that key; shared pages
	Inodes  []uint64          // of the segments of all that was made
}

// Broken names the first tensor whose bytes do not have their SHA-256, or is empty.
func (h *Held) Broken() string {
	for name, b := range h.Tensors {
		if sha256.Sum256(b) != h.Sums[name] {
			return name
		}
	}
	return ""
}

// Row is a tensor to put: so many bytes, filled from a seed.
type Row struct {
	Name string
	Size int
	Seed uint64
}

// Big is a version with tensors of every class of size: shared between versions or not, aligned or not, and empty.
func Big() []Row {
	return []Row{{"a", 1 << 20, 1}, {"b", 300_000, 2}, {"c", 200_001, 3}, {"d", 5000, 4}, {"e", 3, 5}, {"empty", 0, 0}}
}

// With is rows with other seeds for some names.
func With(rows []Row, seeds map[string]uint64) []Row {
	out := append([]Row(nil), rows...)
	for i := range out {
		if s, ok := seeds[out[i].Name]; ok {
			out[i].Seed = s
		}
	}
	return out
}

// Bytes are a row's content.
func (r Row) Bytes() []byte {
	b := make([]byte, r.Size)
	rng := rand.New(rand.NewPCG(r.Seed, 0))
	for k := range b {
		b[k] = byte(rng.Uint32())
	}
	return b
}

// Draft is one module with a tensor per row.
func Draft(rows ...Row) *manifest.Draft {
	d := &manifest.Draft{Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage(`{}`)}}
	for i, r := range rows {
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{r.Name}, DType: tensor.U8, Shape: tensor.Shape{r.Size}, Data: bytes.NewReader(r.Bytes())})
		d.Root.Params = append(d.Root.Params, manifest.Param{Name: r.Name, Tensor: i})
	}
	return d
}

// Digest is the digest that a draft of rows has.
func Digest(t testing.TB, rows ...Row) manifest.Digest {
	t.Helper()
	s, err := Draft(rows...).Seal(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.Digest
}

// Put puts rows and fails the test when that fails.
func Put(t testing.TB, s Store, ref string, rows ...Row) *store.PutResult {
	t.Helper()
	res, err := s.Put(ref, false, Draft(rows...))
	if err != nil {
		t.Fatalf("put %s: %v", ref, err)
	}
	return res
}

// Whole attaches a version, compares every byte with its rows, and lets it go.
func Whole(t testing.TB, s Store, ref string, rows ...Row) {
	t.Helper()
	h, err := s.Attach(ref)
	if err != nil {
		t.Fatalf("attach %s: %v", ref, err)
	}
	defer h.Release()
	h.Same(t, rows...)
}

// Same compares every byte of a held version with its rows.
func (h *Held) Same(t testing.TB, rows ...Row) {
	t.Helper()
	if want := Digest(t, rows...); h.Digest != want {
		t.Fatalf("%s is %v, want %v", h.Ref, h.Digest, want)
	}
	if len(h.Tensors) != len(rows) {
		t.Fatalf("%s has %d tensors, want %d", h.Ref, len(h.Tensors), len(rows))
	}
	for _, r := range rows {
		if got, ok := h.Tensors[r.Name]; !ok || !bytes.Equal(got, r.Bytes()) {
			t.Fatalf("tensor %s of %s differs", r.Name, h.Ref)
		}
	}
}

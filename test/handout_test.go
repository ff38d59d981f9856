package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/shm/tensor"
)

// marked is a version whose one tensor says which version it is.
func marked(id uint64) *manifest.Draft {
	data := binary.LittleEndian.AppendUint64(nil, id)
	return &manifest.Draft{
		Root:    &manifest.Node{Kind: manifest.Module, Impl: "test.marked", Config: []byte("{}"), Params: []manifest.Param{{Name: "id", Tensor: 0}}},
		Tensors: []manifest.DraftTensor{{Names: []string{"id"}, DType: tensor.U64, Shape: tensor.Shape{1}, Data: bytes.NewReader(data)}},
	}
}

// 32 clients attach to 64 versions at once. Every descriptor is the right one: the table says the version's digest, the segment
// has its inode and its mark. ZCSTORE_HANDOUTS is how many hand-outs there are; the figure of docs/benchmarks.md is of 1,000,000.
func TestHandOutsOf32Clients(t *testing.T) {
	total := 20_000
	if v := os.Getenv("ZCSTORE_HANDOUTS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		total = n
	} else if testrace.Enabled {
		total = 2_000
	}
	const clients, versions = 32, 64
	p := start(t)
	type version struct {
		digest manifest.Digest
		inode  uint64
	}
	var want [versions]version
	seen := map[uint64]bool{}
	for i := range want {
		ref := "m" + strconv.Itoa(i)
		if _, err := p.c.Put(ctx, ref, marked(uint64(i)), client.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		m, err := p.c.Attach(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		want[i] = version{m.Digest(), m.Segments()[0].Inode}
		seen[want[i].inode] = true
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != versions {
		t.Fatalf("%d segments for %d versions", len(seen), versions)
	}
	var next, wrong, descriptors atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			c, err := client.Dial(ctx, client.Options{Socket: p.socket})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for n := next.Add(1); n <= int64(total); n = next.Add(1) {
				i := uint64(n) * 2654435761 % versions
				if err := func() error {
					m, err := c.Attach(ctx, "m"+strconv.FormatUint(i, 10))
					if err != nil {
						return err
					}
					defer m.Close()
					v, _, err := m.Lookup("id")
					if err != nil {
						return err
					}
					sg := m.Segments()
					descriptors.Add(int64(1 + len(sg)))
					if got := binary.LittleEndian.Uint64(v.Data); got != i || m.Digest() != want[i].digest || len(sg) != 1 || sg[0].Inode != want[i].inode {
						return fmt.Errorf("wanted %d, got %d, %v, %v", i, got, m.Digest(), sg)
					}
					return nil
				}(); err != nil {
					wrong.Add(1)
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	t.Logf("%d attaches with %d descriptors by %d clients in %v: %.0f attaches/s, %.0f descriptors/s, %d wrong",
		total, descriptors.Load(), clients, took.Round(time.Millisecond), float64(total)/took.Seconds(), float64(descriptors.Load())/took.Seconds(), wrong.Load())
	if h, err := p.c.Holders(ctx, ""); err != nil || len(h) != 0 {
		t.Errorf("%d leases left, %v", len(h), err)
	}
}

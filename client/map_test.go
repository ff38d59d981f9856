package client

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/tensor"
)

// What a daemon hands out is checked before it is used: a reply and files that do not belong together are refused.
func TestReplyAndFilesMustBelongTogether(t *testing.T) {
	path, err := os.MkdirTemp("/dev/shm", "zcstore-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(path)
	dir, err := shm.OpenDir(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	publish := func(name string, b []byte) {
		t.Helper()
		w, err := dir.Create(int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if err := w.Publish(name); err != nil {
			t.Fatal(err)
		}
	}
	d := &manifest.Draft{
		Root:    &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage("{}"), Params: []manifest.Param{{Name: "w", Tensor: 0}}},
		Tensors: []manifest.DraftTensor{{Names: []string{"w"}, DType: tensor.U8, Shape: tensor.Shape{4}, Data: strings.NewReader("data")}},
	}
	s, err := d.Seal(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := table.Encode(s.Manifest, s.Digest, []table.Segment{{ID: "seg", Bytes: 4}}, []table.Location{{Segment: 0, Offset: 0}})
	if err != nil {
		t.Fatal(err)
	}
	publish("table", b)
	publish("segment", []byte("data"))
	publish("short", []byte("dat"))
	good := func() *zcstorev1.Attached {
		return &zcstorev1.Attached{Digest: s.Digest[:], TableBytes: uint64(len(b)), TableVersion: table.Version, Fds: 2}
	}
	for _, tt := range []struct {
		name  string
		reply func(*zcstorev1.Attached)
		files []string
		kind  zcerr.Kind // Other: none
	}{
		{"as it should be", func(*zcstorev1.Attached) {}, []string{"table", "segment"}, zcerr.Other},
		{"another version's table", func(a *zcstorev1.Attached) { a.Digest = make([]byte, 32) }, []string{"table", "segment"}, zcerr.Corrupt},
		{"no digest", func(a *zcstorev1.Attached) { a.Digest = nil }, []string{"table", "segment"}, zcerr.Corrupt},
		{"a newer table", func(a *zcstorev1.Attached) { a.TableVersion++ }, []string{"table", "segment"}, zcerr.Unsupported},
		{"a table longer than its file", func(a *zcstorev1.Attached) { a.TableBytes += 1 << 20 }, []string{"table", "segment"}, zcerr.Corrupt},
		{"a table that is cut", func(a *zcstorev1.Attached) { a.TableBytes-- }, []string{"table", "segment"}, zcerr.Corrupt},
		{"a segment too few", func(*zcstorev1.Attached) {}, []string{"table"}, zcerr.Corrupt},
		{"a segment too many", func(*zcstorev1.Attached) {}, []string{"table", "segment", "segment"}, zcerr.Corrupt},
		{"a segment that is too short", func(*zcstorev1.Attached) {}, []string{"table", "short"}, zcerr.Corrupt},
		{"files in another order", func(*zcstorev1.Attached) {}, []string{"segment", "table"}, zcerr.Corrupt},
		{"seals that it has not", func(a *zcstorev1.Attached) { a.Seals = shm.AllSeals }, []string{"table", "segment"}, zcerr.Corrupt},
		{"nothing", func(*zcstorev1.Attached) {}, nil, zcerr.Corrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var files []*os.File
			defer func() { closeAll(files) }()
			for _, n := range tt.files {
				f, err := dir.Open(n)
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, f)
			}
			a := good()
			tt.reply(a)
			m := newModel(nil, "m:v1")
			defer m.unmap()
			err := m.mapFiles(a, files)
			if tt.kind == zcerr.Other {
				if v, _, terr := m.Tensor(0); err != nil || terr != nil || string(v.Data) != "data" {
					t.Errorf("%v, %v, %q", err, terr, v.Data)
				}
				return
			}
			if !errors.Is(err, tt.kind) {
				t.Errorf("got %v, want %v", err, tt.kind)
			}
		})
	}
}

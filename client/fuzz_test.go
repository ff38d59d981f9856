package client

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm/tensor"
)

// FuzzMapped is case 67: a daemon that is not to be trusted hands out any table, beside a reply that fits it, and a small segment.
// Whatever the table says, what the SDK gives out lies inside the mappings and is only read; a read outside would end the process.
func FuzzMapped(f *testing.F) {
	d := &manifest.Draft{
		Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage("{}"), Params: []manifest.Param{{Name: "w", Tensor: 0}, {Name: "x", Tensor: 1}}},
		Tensors: []manifest.DraftTensor{
			{Names: []string{"w", "tied"}, DType: tensor.U8, Shape: tensor.Shape{2, 2}, Data: strings.NewReader("data")},
			{Names: []string{"x"}, DType: tensor.F32, Shape: tensor.Shape{1}, Data: strings.NewReader("1234")},
		},
	}
	s, err := d.Seal(context.Background(), nil)
	if err != nil {
		f.Fatal(err)
	}
	const segment = 5000
	b, err := table.Encode(s.Manifest, s.Digest, []table.Segment{{ID: "s", Bytes: segment}}, []table.Location{{Segment: 0, Offset: 4096}, {Segment: 0, Offset: segment - 4}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, at := range []int{8, 16, 64, 72, 80, 88} {
		bad := append([]byte(nil), b...)
		bad[at] ^= 0xff
		f.Add(bad)
	}
	dir, err := os.MkdirTemp("/dev/shm", "zcstore-fuzz-")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	seg, tab := filepath.Join(dir, "s"), filepath.Join(dir, "t")
	if err := os.WriteFile(seg, make([]byte, segment), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 56 {
			return
		}
		var files []*os.File
		defer func() { closeAll(files) }()
		if err := os.WriteFile(tab, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{tab, seg} {
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		m := newModel(nil, "m:v1")
		defer m.unmap()
		if m.mapFiles(&zcstorev1.Attached{Digest: b[24:56], TableBytes: uint64(len(b)), TableVersion: table.Version, Fds: 2}, files) != nil {
			return
		}
		sum := 0
		use := func(v tensor.View, err error) {
			if err != nil {
				return
			}
			if size, err := tensor.SizeBytes(v.DType, v.Shape); err != nil || size != len(v.Data) || cap(v.Data) != len(v.Data) {
				t.Fatalf("%v %v in %d bytes of %d, %v", v.DType, v.Shape, len(v.Data), cap(v.Data), err)
			}
			for _, x := range v.Data {
				sum += int(x)
			}
		}
		views, err := m.Views()
		if err == nil && len(views) < 1000 {
			for i, v := range views {
				use(v, nil)
				v, _, err := m.Tensor(i)
				use(v, err)
			}
		}
		for _, name := range []string{"w", "tied", "x", ""} {
			v, _, err := m.Lookup(name)
			use(v, err)
		}
		root := m.Table().Root()
		_, _, _, _ = root.Kind(), root.Impl(), root.Config(), root.Children()
	})
}

// What FuzzMapped searches widely, this walks near a good table: each single byte of it changed.
func TestCase67HostileTable(t *testing.T) {
	d := &manifest.Draft{
		Root:    &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage("{}"), Params: []manifest.Param{{Name: "w", Tensor: 0}}},
		Tensors: []manifest.DraftTensor{{Names: []string{"w"}, DType: tensor.U8, Shape: tensor.Shape{2, 2}, Data: strings.NewReader("data")}},
	}
	s, err := d.Seal(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	good, err := table.Encode(s.Manifest, s.Digest, []table.Segment{{ID: "s", Bytes: 5000}}, []table.Location{{Segment: 0, Offset: 4096}})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "zcstore-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(dir+"/s", make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	opened, refused := 0, 0
	for at := range good {
		for _, x := range []byte{0x01, 0xff} {
			bad := append([]byte(nil), good...)
			bad[at] ^= x
			if err := os.WriteFile(dir+"/t", bad, 0o600); err != nil {
				t.Fatal(err)
			}
			tf, err := os.Open(dir + "/t")
			if err != nil {
				t.Fatal(err)
			}
			sf, err := os.Open(dir + "/s")
			if err != nil {
				t.Fatal(err)
			}
			m := newModel(nil, "m:v1")
			err = m.mapFiles(&zcstorev1.Attached{Digest: bad[24:56], TableBytes: uint64(len(bad)), TableVersion: table.Version, Fds: 2}, []*os.File{tf, sf})
			if err != nil {
				refused++
			} else {
				opened++
				if views, err := m.Views(); err == nil {
					for _, v := range views {
						for range v.Data { // a length that is right
						}
						_ = append([]byte(nil), v.Data...) // and memory that is there
					}
				}
				_, _, _ = m.Lookup("w")
			}
			m.unmap()
			closeAll([]*os.File{tf, sf})
		}
	}
	t.Logf("%d tables opened, %d refused", opened, refused)
	if opened == 0 || refused == 0 {
		t.Error("the changes did not reach both sides")
	}
}

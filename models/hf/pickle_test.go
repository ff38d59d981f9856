package hf

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// torchFile is what torch.save writes of tensors. aliases are further names: alias -> name.
func torchFile(t *testing.T, list []safetensors.Named, aliases map[string]string) string {
	t.Helper()
	text := func(s string) string {
		return string(binary.LittleEndian.AppendUint32([]byte("X"), uint32(len(s)))) + s
	}
	number := func(n int) string { return string(binary.LittleEndian.AppendUint32([]byte("J"), uint32(n))) }
	class := map[string]string{"F32": "FloatStorage", "I64": "LongStorage"}
	var out, p bytes.Buffer
	z := zip.NewWriter(&out)
	entry := func(name string, b []byte) {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name})
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p.WriteString("\x80\x02}(")
	add := func(name, key string, v safetensors.Named) {
		p.WriteString(text(name) + "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + "ctorch\n" + class[v.View.DType.String()] + "\n" +
			text(key) + text("cpu") + number(v.View.Elements()) + "tQK\x00(")
		strides, n := "", 1
		for i := len(v.View.Shape) - 1; i >= 0; i-- {
			strides = number(n) + strides
			n *= v.View.Shape[i]
		}
		for _, d := range v.View.Shape {
			p.WriteString(number(d))
		}
		p.WriteString("t(" + strides + "t\x89}tR")
	}
	for i, v := range list {
		add(v.Name, fmt.Sprint(i), v)
		for alias, of := range aliases {
			if of == v.Name {
				add(alias, fmt.Sprint(i), v)
			}
		}
	}
	p.WriteString("u.")
	entry("archive/data.pkl", p.Bytes())
	for i, v := range list {
		entry(fmt.Sprintf("archive/data/%d", i), v.View.Data)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// The same weights give the same version, whichever file they come in.
func TestPyTorchFiles(t *testing.T) {
	d := newDir(t)
	want := d.seal().Digest
	list := d.tensors()
	d.remove("model.safetensors")
	d.write("pytorch_model.bin", torchFile(t, list, nil))
	if got := d.seal().Digest; got != want {
		t.Errorf("%v from pytorch_model.bin, %v from model.safetensors", got, want)
	}
	d.write("model.safetensors", "damaged")
	d.refused(zcerr.Invalid, "model.safetensors") // which comes first
	d.remove("model.safetensors")

	a, b := "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
	d.write(a, torchFile(t, list[:10], nil))
	d.write(b, torchFile(t, list[10:], nil))
	index := `{"weight_map":{`
	for i, n := range list {
		index += fmt.Sprintf("%q:%q,", n.Name, map[bool]string{true: a, false: b}[i < 10])
	}
	d.write("pytorch_model.bin.index.json", strings.TrimSuffix(index, ",")+"}}")
	if got := d.seal().Digest; got != want {
		t.Errorf("%v from shards of PyTorch, %v from model.safetensors", got, want)
	}
	d.remove(b)
	d.refused(zcerr.Invalid, b, "is missing")
}

func TestPyTorchTies(t *testing.T) {
	d := newDir(t)
	list := d.tensors()[:2]
	d.write("two.pt", torchFile(t, list, map[string]string{"tied": list[0].Name}))
	im, err := open(t, d.path("two.pt"))
	d.check(err)
	defer im.Close()
	if n := im.Draft.Tensors; len(n) != 2 || len(n[0].Names) != 2 || len(im.Draft.Root.Params) != 3 {
		t.Errorf("%d tensors, %v, %d params", len(n), n[0].Names, len(im.Draft.Root.Params))
	}
}

func TestPyTorchDamage(t *testing.T) {
	d := newDir(t)
	list := d.tensors()
	d.remove("model.safetensors")
	file := torchFile(t, list, nil)
	data := string(list[3].View.Data)
	at := strings.Index(file, data)
	d.write("pytorch_model.bin", file[:at]+"\xff"+file[at+1:])
	d.refused(zcerr.Invalid, "pytorch_model.bin", "archive/data/3 has the checksum")
}

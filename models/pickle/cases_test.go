package pickle

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// refused holds that a file is refused as what it is, in little time and memory.
func refused(t *testing.T, name string, b []byte) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	_, err := read(b)
	took := time.Since(begin)
	runtime.ReadMemStats(&after)
	if k := zcerr.KindOf(err); k != zcerr.Invalid && k != zcerr.Unsupported {
		t.Errorf("%s: %v of kind %v", name, err, k)
	}
	if used := after.TotalAlloc - before.TotalAlloc; took > 5*time.Second || used > 64<<20 {
		t.Errorf("%s: it took %v and %d MiB", name, took, used>>20)
	}
}

// zip64 gives an archive the end of one that is larger than 4 GiB.
func zip64(b []byte) []byte {
	le := binary.LittleEndian
	end := b[len(b)-lenEnd:]
	e := le.AppendUint32(nil, sigEnd64)
	e = le.AppendUint64(e, lenEnd64-12)
	e = append(e, make([]byte, 12)...)
	for _, v := range []uint64{uint64(le.Uint16(end[10:])), uint64(le.Uint16(end[10:])), uint64(le.Uint32(end[12:])), uint64(le.Uint32(end[16:]))} {
		e = le.AppendUint64(e, v)
	}
	l := le.AppendUint32(nil, sigLocator)
	l = le.AppendUint32(l, 0)
	l = le.AppendUint64(l, uint64(len(b)-lenEnd))
	l = le.AppendUint32(l, 1)
	tail := bytes.Clone(end)
	for i := 8; i < 20; i++ {
		tail[i] = 0xff
	}
	return bytes.Join([][]byte{b[:len(b)-lenEnd], e, l, tail}, nil)
}

func TestCase76ZipBombs(t *testing.T) {
	good := archive(pickled("K\x00", "K\x04K\x04\x86", "K\x04K\x01\x86"))
	for name, b := range map[string][]byte{"good": good, "zip64": zip64(good)} {
		if f, err := read(b); err != nil || len(f.Tensors) != 1 {
			t.Fatalf("%s: %v", name, err)
		}
	}
	le := binary.LittleEndian
	change := func(name string, from []byte, at int, v uint64, size int) {
		b := bytes.Clone(from)
		var all [8]byte
		le.PutUint64(all[:], v)
		copy(b[at:at+size], all[:size])
		refused(t, fmt.Sprintf("%s is %#x", name, v), b)
	}
	dir := int(le.Uint32(good[len(good)-6:]))
	for _, v := range []uint64{0, 1, 1 << 16, 1 << 31, 1<<32 - 1} {
		change("directory's size", good, len(good)-10, v, 4)
		change("directory's place", good, len(good)-6, v, 4)
		change("entry's packed size", good, dir+20, v, 4)
		change("entry's size", good, dir+24, v, 4)
		change("entry's place", good, dir+42, v|64, 4)
	}
	for _, v := range []uint64{0, 1, 3, 1<<16 - 1} {
		change("count", good, len(good)-12, v, 2)
		change("name's length", good, dir+28, v, 2)
		change("extra's length", good, dir+30, v|1, 2)
		change("method", good, dir+10, v|8, 2)
	}
	big := zip64(good)
	for _, v := range []uint64{0, 1, 1 << 40, 1 << 62, 1 << 63, 1<<64 - 1} {
		change("zip64 end's place", big, len(big)-lenEnd-12, v, 8)
		change("zip64 count", big, len(big)-lenEnd-lenLocator-24, v|4, 8)
		change("zip64 directory's size", big, len(big)-lenEnd-lenLocator-16, v, 8)
		change("zip64 directory's place", big, len(big)-lenEnd-lenLocator-8, v, 8)
	}
	// The second entry on the bytes of the first.
	second := dir + lenEntry + len("a/data.pkl")
	for second < len(good) && le.Uint32(good[second:]) != sigEntry {
		second++
	}
	change("second entry's place", good, second+42, 0, 4)

	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for i := range 1_000_000 {
		if _, err := z.CreateRaw(&zip.FileHeader{Name: fmt.Sprintf("a/data/%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	refused(t, "a million entries", out.Bytes())

	out.Reset()
	z = zip.NewWriter(&out)
	w, err := z.Create("a/data.pkl") // which inflates to 300 MB
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	refused(t, "a bomb", out.Bytes())
}

// Programs that would run code, build something else than tensors, or never end. None of them gets to its effect: there is
// nothing in this package that could have one.
func TestCase77PicklesRunNothing(t *testing.T) {
	var programs []string
	for _, g := range []string{"os system", "posix system", "nt system", "builtins eval", "builtins exec", "builtins __import__", "builtins getattr", "__builtin__ eval",
		"subprocess Popen", "subprocess check_output", "sys exit", "shutil rmtree", "importlib import_module", "runpy run_path", "pickle loads", "marshal loads",
		"types CodeType", "types FunctionType", "operator attrgetter", "functools partial", "socket socket", "urllib.request urlopen", "webbrowser open", "code interact",
		"torch load", "torch.hub load", "torch.jit load", "torch._utils _rebuild_device_tensor_from_numpy", "torch._utils _import_dotted_name", "torch.nn.modules.linear Linear",
		"torch.storage _load_from_bytes", "torch os.system", "torch.serialization load", "numpy.core.multiarray _reconstruct", "numpy load", "collections namedtuple", "copyreg _reconstructor", "torch "} {
		module, name, _ := strings.Cut(g, " ")
		short := func(s string) string { return "\x8c" + string(rune(len(s))) + s }
		programs = append(programs,
			"\x80\x02c"+module+"\n"+name+"\n(X\x02\x00\x00\x00idtR.",           // GLOBAL, REDUCE
			"\x80\x04"+short(module)+short(name)+"\x93(X\x02\x00\x00\x00idtR.", // STACK_GLOBAL
			"\x80\x02(i"+module+"\n"+name+"\n.",                                // INST
		)
	}
	programs = append(programs,
		"\x80\x02ccollections\nOrderedDict\n)\x81.",               // NEWOBJ
		"\x80\x04ccollections\nOrderedDict\n)}\x92.",              // NEWOBJ_EX
		"\x80\x02(ccollections\nOrderedDict\no.",                  // OBJ
		"\x80\x02\x82\x01.",                                       // EXT1
		"\x80\x02P1\n.",                                           // PERSID
		"\x80\x02K\x01Q.",                                         // a storage of a number
		"\x80\x02K\x01)R.",                                        // a call of a number
		"\x80\x02]}b.",                                            // attributes of a list
		"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",          // a tensor of nothing
		"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", // a tensor on None
		"\x80\x02ctorch\nSize\n)R.", "\x80\x02ctorch\nfloat32\n)R.",
		"\x80\x02h\x05.", "\x80\x02q\x00.", "\x80\x02.", "\x80\x02t.", "\x80\x02(.", "\x80\x02s.", "\x80\x02u.", "\x80\x02a.", "\x80\x020.", "\x80\x022.",
		"\x80\x02X\xff\xff\xff\xff.", "\x80\x02X\xff\xff\x00\x00a.", "\x80\x02\x8a\xff.", "\x80\x02c", "\x80\x02c"+strings.Repeat("a", 5000), "\x80\x02", "", "\x80\x09.", "\x80\x02N",
		"\x80\x02]q\x00h\x00a.", "\x80\x02}q\x00X\x01\x00\x00\x00kh\x00s.", // a list and a dict in themselves
		"\x80\x02"+strings.Repeat("(", 5_000_000)+".", "\x80\x02"+strings.Repeat("]", 5_000_000)+".",
		"\x80\x02N"+strings.Repeat("\x85", 5_000_000)+".", // tuples in tuples
		"\x80\x02]"+strings.Repeat("2\x86", 100)+".",      // 2^100 lists on paper
	)
	if len(programs) < 100 {
		t.Errorf("%d programs", len(programs))
	}
	for _, p := range programs {
		_, err := read(archive([]byte(p)))
		if k := zcerr.KindOf(err); k != zcerr.Invalid && k != zcerr.Unsupported {
			t.Errorf("%.80q: %v of kind %v", p, err, k)
		}
	}
}

// A file is what it begins as, and nothing may come before or behind it.
func TestCase78TwoFormats(t *testing.T) {
	good := archive(pickled("K\x00", "K\x04K\x04\x86", "K\x04K\x01\x86"))
	header := append(binary.LittleEndian.AppendUint64(nil, 2), "{}"...)
	refused(t, "safetensors in front of an archive", append(bytes.Clone(header), good...))
	refused(t, "bytes behind an archive", append(bytes.Clone(good), "more"...))
	refused(t, "an archive behind an archive", append(bytes.Clone(good), good...))
	refused(t, "a stream in front of an archive", append([]byte(streamMagic), good...))
	refused(t, "the head of an archive alone", []byte("PK\x03\x04"))
}

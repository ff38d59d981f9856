package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/shm/tensor"
)

// file is a header with its length before it and n data bytes behind it.
func file(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	return append(b, make([]byte, n)...)
}

// one is the header of a file with a single tensor "t".
func one(fields string) string { return `{"t":{` + fields + `}}` }

func TestMalformed(t *testing.T) {
	const good = `"dtype":"F32","shape":[2],"data_offsets":[0,8]`
	long := strings.Repeat("n", MaxNameBytes+1)
	dims := strings.Repeat("1,", tensor.MaxRank) + "1"
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"empty file", nil, `byte 0, header length: the file has 0 bytes`},
		{"seven bytes", make([]byte, 7), `byte 0, header length: the file has 7 bytes`},
		{"no header", file("", 0), `header length: 0 bytes is no JSON object`},
		{"one byte of header", file("{", 0), `header length: 1 bytes is no JSON object`},
		{"header longer than the file", append(binary.LittleEndian.AppendUint64(nil, 100), '{', '}'), `header length: 100 bytes, but the file has only 2`},
		{"header over the limit", append(binary.LittleEndian.AppendUint64(nil, MaxHeaderBytes+1), '{', '}'), `header length: 100000001 bytes is over the limit`},
		{"length with the top bit", append(bytes.Repeat([]byte{0xff}, 8), '{', '}'), `header length: 18446744073709551615 bytes is over the limit`},
		{"space first", file(" {}", 0), `byte 8: the header starts with ' '`},
		{"array first", file("[]", 0), `byte 8: the header starts with '['`},
		{"byte order mark", file("\ufeff{}", 0), `byte 8: the header starts with byte 0xef`},
		{"tab after the JSON", file("{}\t", 0), `byte 10: byte 0x09 after the JSON object`},
		{"NUL after the JSON", file("{}  \x00", 0), `byte 12: byte 0x00 after the JSON object`},
		{"second object", file("{} {}", 0), `byte 11: '{' after the JSON object`},
		{"no end of object", file(`{"t"`, 0), `byte 12: found the end of the header, want ':'`},
		{"only an opening brace", file(`{  `, 0), `found the end of the header, want a string`},
		{"trailing comma", file(`{"__metadata__":{},}`, 0), `byte 27: found '}', want a string`},
		{"key without quotes", file(`{t:{}}`, 0), `byte 9: found 't', want a string`},
		{"tensor is a list", file(`{"t":[]}`, 0), `byte 13, tensor "t": found '[', want an object`},
		{"tensor is null", file(`{"t":null}`, 0), `tensor "t": found 'n', want an object`},
		{"single quotes", file(`{'t':{}}`, 0), `byte 9: found '\''`},
		{"comment", file(`{/**/}`, 0), `byte 9: found '/'`},

		{"same tensor twice", file(`{"t":{`+good+`},"t":{`+good+`}}`, 8), `duplicate key "t"`},
		{"same tensor twice by escape", file(`{"t":{`+good+`},"\u0074":{`+good+`}}`, 8), `duplicate key "t"`},
		{"same field twice", file(one(good+`,"dtype":"F32"`), 8), `tensor "t", dtype: duplicate key "dtype"`},
		{"shape twice", file(one(`"shape":[2],"shape":[2],"dtype":"F32","data_offsets":[0,8]`), 8), `tensor "t", shape: duplicate key`},
		{"offsets twice", file(one(good+`,"data_offsets":[0,8]`), 8), `tensor "t", data_offsets: duplicate key`},
		{"metadata twice", file(`{"__metadata__":{},"__metadata__":{}}`, 0), `byte 27: duplicate key "__metadata__"`},
		{"metadata key twice", file(`{"__metadata__":{"a":"1","a":"2"}}`, 0), `__metadata__: duplicate key "a"`},
		{"upper-case field", file(one(`"DTYPE":"F32","shape":[2],"data_offsets":[0,8]`), 8), `tensor "t": unknown key "DTYPE"`},
		{"mixed-case field", file(one(`"dtype":"F32","Shape":[2],"data_offsets":[0,8]`), 8), `tensor "t": unknown key "Shape"`},
		{"unknown field", file(one(good+`,"strides":[1]`), 8), `tensor "t": unknown key "strides"`},
		{"no dtype", file(one(`"shape":[2],"data_offsets":[0,8]`), 8), `tensor "t", dtype: missing`},
		{"no shape", file(one(`"dtype":"F32","data_offsets":[0,8]`), 8), `tensor "t", shape: missing`},
		{"no offsets", file(one(`"dtype":"F32","shape":[2]`), 8), `tensor "t", data_offsets: missing`},
		{"empty tensor object", file(one(""), 0), `byte 9, tensor "t", dtype: missing`},

		{"unknown dtype", file(one(`"dtype":"F31","shape":[2],"data_offsets":[0,8]`), 8), `byte 22, tensor "t", dtype: unknown dtype "F31" (known: F64`},
		{"lower-case dtype", file(one(`"dtype":"f32","shape":[2],"data_offsets":[0,8]`), 8), `dtype: unknown dtype "f32"`},
		{"sub-byte dtype", file(one(`"dtype":"F4","shape":[2],"data_offsets":[0,1]`), 1), `dtype: dtype "F4" has elements smaller than a byte`},
		{"six-bit dtype", file(one(`"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]`), 3), `dtype "F6_E2M3" has elements smaller`},
		{"dtype is a number", file(one(`"dtype":1,"shape":[2],"data_offsets":[0,8]`), 8), `tensor "t", dtype: found '1', want a string`},

		{"null dimension", file(one(`"dtype":"F32","shape":[null],"data_offsets":[0,0]`), 0), `tensor "t", shape: found 'n', want a number`},
		{"shape is null", file(one(`"dtype":"F32","shape":null,"data_offsets":[0,4]`), 4), `tensor "t", shape: found 'n', want an array`},
		{"negative dimension", file(one(`"dtype":"F32","shape":[-2],"data_offsets":[0,8]`), 8), `byte 37, tensor "t", shape: negative number`},
		{"minus zero", file(one(`"dtype":"F32","shape":[-0],"data_offsets":[0,0]`), 0), `shape: negative number`},
		{"plus sign", file(one(`"dtype":"F32","shape":[+2],"data_offsets":[0,8]`), 8), `shape: found '+', want a number`},
		{"float dimension", file(one(`"dtype":"F32","shape":[2.0],"data_offsets":[0,8]`), 8), `shape: the number is not an integer`},
		{"exponent", file(one(`"dtype":"F32","shape":[2e0],"data_offsets":[0,8]`), 8), `shape: the number is not an integer`},
		{"leading zero", file(one(`"dtype":"F32","shape":[02],"data_offsets":[0,8]`), 8), `shape: number with a leading zero`},
		{"hexadecimal", file(one(`"dtype":"F32","shape":[0x2],"data_offsets":[0,8]`), 8), `shape: found 'x', want ','`},
		{"string dimension", file(one(`"dtype":"F32","shape":["2"],"data_offsets":[0,8]`), 8), `shape: found '"', want a number`},
		{"dimension over int64", file(one(`"dtype":"U8","shape":[9223372036854775808,0],"data_offsets":[0,0]`), 0), `shape: the number is over 9223372036854775807`},
		{"dimension over uint64", file(one(`"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]`), 0), `shape: the number is over`},
		{"product overflows to zero", file(one(`"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]`), 0), `tensor "t", shape: shape [4294967296,4294967296] has a negative dimension or overflows`},
		{"bytes overflow", file(one(`"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]`), 0), `shape: shape [2305843009213693952] of F64 overflows`},
		{"rank 65", file(one(`"dtype":"U8","shape":[`+dims+`],"data_offsets":[0,1]`), 1), `tensor "t", shape: more than 64 dimensions`},
		{"trailing comma in shape", file(one(`"dtype":"F32","shape":[2,],"data_offsets":[0,8]`), 8), `shape: found ']', want a number`},
		{"nested shape", file(one(`"dtype":"F32","shape":[[2]],"data_offsets":[0,8]`), 8), `shape: found '[', want a number`},

		{"one offset", file(one(`"dtype":"F32","shape":[2],"data_offsets":[8]`), 8), `data_offsets: 1 offsets`},
		{"no offset values", file(one(`"dtype":"F32","shape":[0],"data_offsets":[]`), 0), `data_offsets: 0 offsets`},
		{"three offsets", file(one(`"dtype":"F32","shape":[2],"data_offsets":[0,8,8]`), 8), `data_offsets: more than two offsets`},
		{"offsets reversed", file(one(`"dtype":"F32","shape":[2],"data_offsets":[8,0]`), 8), `data_offsets: [8,0] is no range`},
		{"offset over int64", file(one(`"dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775816]`), 8), `data_offsets: the number is over`},
		{"negative offset", file(one(`"dtype":"F32","shape":[2],"data_offsets":[-8,0]`), 8), `data_offsets: negative number`},
		{"size disagrees", file(one(`"dtype":"F32","shape":[3],"data_offsets":[0,8]`), 8), `byte 55, tensor "t", data_offsets: [0,8] is 8 bytes, but F32 [3] needs 12`},
		{"starts late", file(one(`"dtype":"F32","shape":[2],"data_offsets":[4,12]`), 12), `tensor "t", data_offsets: begins at 4, and no tensor holds the bytes before it`},
		{"hole", file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}`, 6), `tensor "b", data_offsets: begins at 4 and leaves a hole of 2 bytes after the end of tensor "a"`},
		{"overlap", file(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}`, 6), `tensor "b", data_offsets: begins at 2 and overlaps the last 2 bytes of tensor "a"`},
		{"same range twice", file(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4), `tensor "b", data_offsets: begins at 0 and overlaps`},
		{"data too short", file(one(good), 7), `tensor "t", data_offsets: the last tensor ends at 8, but the file has 7 data bytes`},
		{"data too long", file(one(good), 9), `the last tensor ends at 8, but the file has 9 data bytes`},
		{"data without tensors", file("{}", 3), `byte 10: 3 bytes follow the header, but it names no tensor`},
		{"empty tensor past the end", file(one(`"dtype":"U8","shape":[0],"data_offsets":[5,5]`), 4), `tensor "t", data_offsets: begins at 5`},

		{"empty name", file(`{"":{`+good+`}}`, 8), `byte 9: the tensor name is empty`},
		{"long name", file(`{"`+long+`":{`+good+`}}`, 8), `the tensor name has 1025 bytes, the limit is 1024`},
		{"newline in a name", file(`{"a\nb":{`+good+`}}`, 8), `control character U+000A`},
		{"NUL in a name", file(`{"a\u0000":{`+good+`}}`, 8), `control character U+0000`},
		{"C1 control in a name", file(`{"a\u0085":{`+good+`}}`, 8), `control character U+0085`},
		{"bare newline in a string", file("{\"a\nb\":{"+good+"}}", 8), `byte 11: bare control character 0x0a`},
		{"bad UTF-8 in a name", file("{\"a\xffb\":{"+good+"}}", 8), `byte 11: the string is not UTF-8`},
		{"overlong UTF-8", file("{\"a\xc0\xafb\":{"+good+"}}", 8), `byte 11: the string is not UTF-8`},
		{"surrogate as UTF-8", file("{\"a\xed\xa0\x80b\":{"+good+"}}", 8), `byte 11: the string is not UTF-8`},
		{"bad UTF-8 after an escape", file("{\"a\\tb\xff\":{"+good+"}}", 8), `byte 14: the string is not UTF-8`},
		{"half a surrogate pair", file(`{"a\ud800":{`+good+`}}`, 8), `byte 11: half of a surrogate pair`},
		{"two high surrogates", file(`{"a\ud800\ud800":{`+good+`}}`, 8), `half of a surrogate pair`},
		{"unknown escape", file(`{"\x41":{`+good+`}}`, 8), `byte 10: unknown escape`},
		{"short escape", file(`{"\u00":{`+good+`}}`, 8), `found '"' in an escape`},
		{"string without end", file(`{"abc`, 0), `byte 13: the string has no end`},
		{"escape at the end", file(`{"abc\`, 0), `byte 13: unknown escape`},

		{"metadata is a list", file(`{"__metadata__":[]}`, 0), `byte 24, __metadata__: found '[', want an object`},
		{"metadata is null", file(`{"__metadata__":null}`, 0), `__metadata__: found 'n', want an object`},
		{"metadata number", file(`{"__metadata__":{"a":1}}`, 0), `__metadata__: found '1', want a string`},
		{"metadata null", file(`{"__metadata__":{"a":null}}`, 0), `__metadata__: found 'n', want a string`},
		{"metadata object", file(`{"__metadata__":{"a":{}}}`, 0), `__metadata__: found '{', want a string`},
		{"metadata too large", file(`{"__metadata__":{"a":"`+strings.Repeat("x", MaxMetadataBytes)+`"}}`, 0), `byte 29, __metadata__: the metadata is over the limit of 1048576 bytes`},
		{"metadata bad UTF-8", file("{\"__metadata__\":{\"a\":\"\xfe\"}}", 0), `byte 30, __metadata__: the string is not UTF-8`},
	}
	if len(tests) < 40 {
		t.Errorf("%d cases", len(tests))
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.file)
			var fe *FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Parse: got %v, want a FormatError with %s", err, tt.want)
			}
			_, rerr := Read(bytes.NewReader(tt.file), int64(len(tt.file)))
			if rerr == nil || rerr.Error() != err.Error() {
				t.Errorf("Read: got %v, Parse gave %v", rerr, err)
			}
		})
	}
}

func TestErrorsStayShort(t *testing.T) {
	name := strings.Repeat("é", 400)
	_, err := Parse(file(`{"`+name+`":{}}`, 0))
	if err == nil || len(err.Error()) > 128*len(`\u00e9`)+100 {
		t.Errorf("got %v", err)
	}
}

func TestAccepted(t *testing.T) {
	tests := []struct {
		name string
		file []byte
		n    int
	}{
		{"nothing", file("{}", 0), 0},
		{"nothing but spaces", file("{}      ", 0), 0},
		{"empty metadata", file(`{"__metadata__":{}}`, 0), 0},
		{"scalar", file(one(`"dtype":"F32","shape":[],"data_offsets":[0,4]`), 4), 1},
		{"zero-size dimension", file(one(`"dtype":"F32","shape":[3,0],"data_offsets":[0,0]`), 0), 1},
		{"white space everywhere", file("{ \"t\" :\t{ \"shape\" : [ 1 , 2 ] ,\n\"data_offsets\":[ 0 , 8 ],\r\n\"dtype\" : \"F32\" } }  ", 8), 1},
		{"rank 64", file(one(`"dtype":"U8","shape":[`+strings.Repeat("1,", 63)+`1],"data_offsets":[0,1]`), 1), 1},
		{"out of order", file(`{"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, 6), 2},
		{"empty ones between", file(`{"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"c":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}}`, 2), 3},
		{"surrogate pair", file(`{"\ud83d\ude00/..\\":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), 1},
		{"name of 1024 bytes", file(`{"`+strings.Repeat("n", MaxNameBytes)+`":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, err := Parse(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if len(h.Entries) != tt.n {
				t.Errorf("%d entries, want %d", len(h.Entries), tt.n)
			}
			checkHeader(t, h, int64(len(tt.file)))
			for i, e := range h.Entries {
				if i > 0 && h.Entries[i-1].End != e.Begin {
					t.Errorf("entries out of order: %v", h.Entries)
				}
			}
			if _, ok := h.Find("no such"); ok {
				t.Error("found a tensor that is not there")
			}
		})
	}
}

// checkHeader holds what every accepted header promises, and that encoding and parsing it again gives the same.
func checkHeader(t *testing.T, h *Header, size int64) {
	t.Helper()
	for _, e := range h.Entries {
		if e.Begin < 0 || e.End < e.Begin || h.DataStart+e.End > size {
			t.Fatalf("%+v lies outside the file of %d bytes with data from %d", e, size, h.DataStart)
		}
		if n, err := tensor.SizeBytes(e.DType, e.Shape); err != nil || int64(n) != e.SizeBytes() {
			t.Fatalf("%+v: %d, %v", e, n, err)
		}
		if got, ok := h.Find(e.Name); !ok || !reflect.DeepEqual(got, e) {
			t.Fatalf("Find(%q) = %+v, %v", e.Name, got, ok)
		}
	}
	if h.DataStart+h.DataBytes() != size {
		t.Fatalf("data from %d, %d bytes, in a file of %d", h.DataStart, h.DataBytes(), size)
	}
	for _, align := range []int{8, 4096} {
		again := &Header{Entries: h.Entries, Metadata: h.Metadata}
		b, err := again.Encode(align)
		if err != nil {
			t.Fatal(err)
		}
		if again.DataStart != int64(len(b)) || len(b)%align != 0 {
			t.Fatalf("%d bytes, data from %d, alignment %d", len(b), again.DataStart, align)
		}
		back, err := Parse(append(b, make([]byte, h.DataBytes())...))
		if err != nil {
			t.Fatal(err)
		}
		again.index, back.index = nil, nil
		if !reflect.DeepEqual(back, again) {
			t.Fatalf("after encode and parse\n%+v, want\n%+v", back, again)
		}
	}
}

// randomTensors makes tensors of all dtypes, with empty ones among them.
func randomTensors(rng *rand.Rand) []Named {
	list := make([]Named, rng.IntN(20))
	for i := range list {
		d := tensor.DType(1 + rng.IntN(int(tensor.C64)))
		s := make(tensor.Shape, rng.IntN(4))
		for j := range s {
			s[j] = rng.IntN(5)
		}
		n, _ := tensor.SizeBytes(d, s)
		data := make([]byte, n)
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		list[i] = Named{fmt.Sprintf("t%d \"\\/é\U0001f600", i), tensor.View{DType: d, Shape: s, Data: data}}
	}
	return list
}

func TestWriteRead(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		tensors := randomTensors(rng)
		meta := map[string]string{"format": "pt", "text": "a\nb\x00\"\\\u2028", "": "empty key"}
		if round%2 == 0 {
			meta = nil
		}
		var buf, again bytes.Buffer
		if err := Write(&buf, tensors, meta); err != nil {
			t.Fatal(err)
		}
		rng.Shuffle(len(tensors), func(i, j int) { tensors[i], tensors[j] = tensors[j], tensors[i] })
		if err := Write(&again, tensors, meta); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf.Bytes(), again.Bytes()) {
			t.Fatal("the order of the tensors shows in the file")
		}
		path := filepath.Join(t.TempDir(), "model.safetensors")
		if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		h, err := Read(f, int64(buf.Len()))
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		checkHeader(t, h, int64(buf.Len()))
		if !reflect.DeepEqual(h.Metadata, meta) {
			t.Fatalf("metadata %v, want %v", h.Metadata, meta)
		}
		for _, want := range tensors {
			e, ok := h.Find(want.Name)
			if !ok || e.DType != want.DType || !e.Shape.Equal(want.Shape) || !h.Aligned(e) {
				t.Fatalf("%q: %+v, %v, aligned %v", want.Name, e, ok, h.Aligned(e))
			}
			if got := buf.Bytes()[h.DataStart+e.Begin : h.DataStart+e.End]; !bytes.Equal(got, want.Data) {
				t.Fatalf("%q: other bytes", want.Name)
			}
		}
	}
}

func TestAligned(t *testing.T) {
	h, err := Parse(file(`{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}`, 5))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"b": true, "f": h.DataStart%4 == 3} {
		if e, _ := h.Find(name); h.Aligned(e) != want {
			t.Errorf("%s: aligned is %v", name, !want)
		}
	}
	if h.Aligned(Entry{}) {
		t.Error("an entry without a dtype is aligned")
	}
}

func TestEncodeRefuses(t *testing.T) {
	u8 := func(name string, begin, end int64) Entry {
		return Entry{Name: name, DType: tensor.U8, Shape: tensor.Shape{int(end - begin)}, Begin: begin, End: end}
	}
	tests := []struct {
		name  string
		h     Header
		align int
		want  string
	}{
		{"alignment 4", Header{}, 4, "alignment 4"},
		{"alignment 24", Header{}, 24, "alignment 24"},
		{"hole", Header{Entries: []Entry{u8("a", 0, 2), u8("b", 3, 4)}}, 8, `tensor "b", data_offsets: begins at 3 and leaves a hole`},
		{"order", Header{Entries: []Entry{u8("a", 2, 4), u8("b", 0, 2)}}, 8, `tensor "a", data_offsets: begins at 2`},
		{"name twice", Header{Entries: []Entry{u8("a", 0, 2), u8("a", 2, 4)}}, 8, `tensor "a": stands there twice`},
		{"no name", Header{Entries: []Entry{u8("", 0, 2)}}, 8, "the tensor name is empty"},
		{"reserved name", Header{Entries: []Entry{u8("__metadata__", 0, 2)}}, 8, "reserved"},
		{"name not UTF-8", Header{Entries: []Entry{u8("\xff", 0, 2)}}, 8, "not UTF-8"},
		{"no dtype", Header{Entries: []Entry{{Name: "a"}}}, 8, "dtype: invalid dtype(0)"},
		{"size", Header{Entries: []Entry{{Name: "a", DType: tensor.F32, End: 2}}}, 8, "is 2 bytes, but F32 [] needs 4"},
		{"metadata not UTF-8", Header{Metadata: map[string]string{"a": "\xff"}}, 8, `metadata "a" is not UTF-8`},
		{"metadata too large", Header{Metadata: map[string]string{"a": strings.Repeat("x", MaxMetadataBytes)}}, 8, "over the limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.h.Encode(tt.align); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %s", err, tt.want)
			}
		})
	}
}

// failing returns fewer bytes than the size that was promised, or an error of its own.
type failing struct {
	io.ReaderAt
	err error
}

func (f failing) ReadAt(b []byte, off int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(b, off)
}

func TestReadErrors(t *testing.T) {
	b := file(one(`"dtype":"U8","shape":[2],"data_offsets":[0,2]`), 2)
	if _, err := Read(bytes.NewReader(b[:20]), int64(len(b))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrank: %v", err)
	}
	if _, err := Read(failing{err: os.ErrPermission}, 100); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a read error is lost: %v", err)
	}
	if _, err := Read(bytes.NewReader(b), -1); err == nil {
		t.Error("took a negative size")
	}
	if err := Write(brokenWriter{}, nil, nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a write error is lost: %v", err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// manyTensors is a file of n one-byte tensors.
func manyTensors(n int) []byte {
	var b bytes.Buffer
	b.WriteString("{")
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"model.encoder.layer.%d.attention.self.query.weight":{"dtype":"U8","shape":[1,1],"data_offsets":[%d,%d]}`, i, i, i+1)
	}
	b.WriteString("}")
	return file(b.String(), n)
}

func TestManyTensors(t *testing.T) {
	b := manyTensors(100_000)
	start := time.Now()
	h, err := Parse(b)
	took := time.Since(start)
	if err != nil || len(h.Entries) != 100_000 {
		t.Fatal(err)
	}
	t.Logf("100,000 tensors, header of %d bytes: %v", h.DataStart, took)
	if took > 3*time.Second { // room for the race detector on a busy machine
		t.Errorf("took %v, want about 0.1 s", took)
	}
	// A file of a million tensors has a header over the limit, which must be seen before it is read.
	huge := binary.LittleEndian.AppendUint64(nil, 129_000_000)
	if _, err := Read(bytes.NewReader(huge), 200_000_000); err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("got %v", err)
	}
}

func TestTooManyTensors(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a header of 70 MB")
	}
	var b bytes.Buffer
	b.WriteString("{")
	for i := range MaxTensors + 1 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`, i)
	}
	b.WriteString("}")
	if _, err := Parse(file(b.String(), 0)); err == nil || !strings.Contains(err.Error(), "more than 1000000 tensors") {
		t.Errorf("got %v", err)
	}
}

func BenchmarkParse100k(b *testing.B) {
	f := manyTensors(100_000)
	b.SetBytes(int64(len(f)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(f); err != nil {
			b.Fatal(err)
		}
	}
}

func TestMiniLM(t *testing.T) {
	for _, parts := range [][]string{{"minilm", "model", "model.safetensors"}, {"minilm", "golden.safetensors"}} {
		f, err := os.Open(golden.Path(t, parts...))
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		h, err := Read(f, st.Size())
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		checkHeader(t, h, st.Size())
		for _, e := range h.Entries {
			if !h.Aligned(e) {
				t.Errorf("%s is not aligned", e.Name)
			}
		}
		t.Logf("%s: %d tensors", parts[len(parts)-1], len(h.Entries))
	}
}

func TestCommittedGoldens(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(golden.Tree(t), "*", "*.safetensors"))
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		h, err := Parse(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkHeader(t, h, int64(len(b)))
	}
}

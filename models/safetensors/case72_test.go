package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// bad is a file that must be refused.
type bad struct {
	name string
	file []byte
}

// badFiles makes over 120 malformed files out of a good one: cut at every byte of the header, with a character of the JSON
// changed, with members missing, doubled or of the wrong kind, and with numbers at the edges.
func badFiles() []bad {
	const good = `{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[4],"data_offsets":[16,20]}}`
	with := func(header string, data int) []byte {
		return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), make([]byte, data)...)
	}
	var all []bad
	add := func(name string, file []byte) { all = append(all, bad{name, file}) }
	for n := range good {
		add(fmt.Sprintf("header cut to %d bytes", n), with(good[:n], 20))
	}
	for _, n := range []uint64{0, 1, uint64(len(good)) - 1, uint64(len(good)) + 1, 1 << 32, 1 << 62, 1 << 63, 1<<64 - 1, MaxHeaderBytes + 1} {
		f := with(good, 20)
		binary.LittleEndian.PutUint64(f, n)
		add(fmt.Sprintf("header length %d", n), f)
	}
	for i, c := range good {
		if strings.ContainsRune(`{}[]:,"`, c) {
			add(fmt.Sprintf("%q at %d is a tilde", c, i), with(good[:i]+"~"+good[i+1:], 20))
		}
	}
	for _, n := range []int{0, 1, 19, 21, 1000} {
		add(fmt.Sprintf("%d data bytes", n), with(good, n))
	}
	replace := func(old, new string) { add(old+" is "+new, with(strings.Replace(good, old, new, 1), 20)) }
	for _, v := range []string{`"F33"`, `"f32"`, `"F4"`, `""`, `7`, `null`, `["F32"]`, `"F32","dtype":"F32"`, "\"F32\xff\""} {
		replace(`"F32"`, v)
	}
	for _, v := range []string{`[4,2]`, `[2]`, `[-2,-2]`, `[2.0,2]`, `[2e0,2]`, `[02,2]`, `[null,4]`, `["2",2]`, `[[2],2]`, `4`, `{}`, `null`,
		`[9223372036854775808,2]`, `[4611686018427387904,4,2]`, `[18446744073709551615,18446744073709551615]`, `[` + strings.Repeat("1,", 100) + `4]`} {
		replace(`[2,2]`, v)
	}
	for _, v := range []string{`[0,15]`, `[0,17]`, `[1,17]`, `[16,0]`, `[-1,15]`, `[0]`, `[0,16,16]`, `[]`, `[0,"16"]`, `[0,16.0]`, `[0,9223372036854775807]`, `[0,18446744073709551615]`, `null`, `"0,16"`} {
		replace(`[0,16]`, v)
	}
	for _, v := range []string{`"a":`, `"":`, `"a\u0000":`, `"\ud800":`, "\"b\xfe\":"} { // "a" twice, and names that are none
		replace(`"b":`, v)
	}
	for _, v := range []string{`{"k":1}`, `{"k":null}`, `{"k":"v","k":"v"}`, `[]`, `"v"`, `null`} {
		replace(`{"k":"v"}`, v)
	}
	for _, v := range []string{`,"more":1}`, `,"shape":[4]}`, `,"SHAPE":[4]}`, `,}`} {
		replace(`,"data_offsets":[16,20]}`, `,"data_offsets":[16,20]`+v)
	}
	for _, v := range []string{" " + good, "\ufeff" + good, good + "x", good + good, good + "\x00", good + "\n", `[` + good + `]`, `{}`, `null`, `"x"`, strings.Repeat("[", 10_000), strings.Repeat(`{"a":`, 10_000)} {
		add(fmt.Sprintf("header %.40q", v), with(v, 20))
	}
	return all
}

// Case 72: malformed files are refused with a byte offset inside the header, quickly, and without memory for what they promise.
// A stream of the same bytes is refused alike, but for what only the file's end can tell.
func TestCase72MalformedFiles(t *testing.T) {
	files := badFiles()
	if len(files) < 120 {
		t.Fatalf("only %d files", len(files))
	}
	for _, f := range files {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin := time.Now()
		_, err := Read(bytes.NewReader(f.file), int64(len(f.file)))
		took := time.Since(begin)
		runtime.ReadMemStats(&after)
		var fe *FormatError
		switch {
		case err == nil:
			t.Errorf("%s: accepted", f.name)
			continue
		case !errors.As(err, &fe):
			t.Errorf("%s: %v is no FormatError", f.name, err)
			continue
		case fe.Offset < 0 || fe.Offset > int64(len(f.file)) || len(err.Error()) > 1000:
			t.Errorf("%s: byte %d of %d: %v", f.name, fe.Offset, len(f.file), err)
		}
		if grew := after.TotalAlloc - before.TotalAlloc; grew > 16<<20 || took > 100*time.Millisecond {
			t.Errorf("%s: %d bytes were allocated in %v", f.name, grew, took)
		}
		if _, perr := Parse(f.file); perr == nil || perr.Error() != err.Error() {
			t.Errorf("%s: Parse says %v, Read %v", f.name, perr, err)
		}
		r := bytes.NewReader(f.file)
		h, serr := ReadStream(r)
		if serr == nil {
			end := int64(0)
			if n := len(h.Entries); n > 0 {
				end = h.Entries[n-1].End
			}
			if end == int64(r.Len()) {
				t.Errorf("%s: as a stream it is whole", f.name)
			}
		}
	}
	t.Logf("%d files", len(files))
}

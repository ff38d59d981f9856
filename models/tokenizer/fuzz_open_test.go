package tokenizer

import (
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// hostileTexts reach all kinds of pieces.
var hostileTexts = []string{"", "abs the café. [CLS]\xff <s> <0x41>", "a b a b ▁▁a  b\n\n12", strings.Repeat("ab ", 40) + strings.Repeat("x", 90)}

// useHostile encodes with a tokenizer whose tables may be anything: it must neither panic nor hang.
func useHostile(t testing.TB, tok *Tokenizer) {
	t.Helper()
	tok = tok.WithPadding(Padding{}).WithOverflow(true)
	enc := tok.NewEncoder()
	for _, text := range hostileTexts {
		if e, err := tok.Encode(text, text); err == nil {
			tok.Decode(e.IDs, true)
		}
		if out, err := enc.Encode(text); err == nil && len(out.IDs) != len(out.Offsets) {
			t.Fatalf("%d ids, %d offsets", len(out.IDs), len(out.Offsets))
		}
	}
	tok.ID("a")
	tok.Token(3)
	tok.VocabSize()
}

// tinyFiles has a small tokenizer.json of each kind of model.
func tinyFiles() map[string]string {
	var single []string
	for r, b := range alphabet {
		single = append(single, quoted(string(r))+":"+strconv.Itoa(int(b)))
	}
	var bytes []string
	for b := range 256 {
		bytes = append(bytes, quoted(byteToken(byte(b)))+":"+strconv.Itoa(b+20))
	}
	return map[string]string{
		"wordpiece": small(),
		"wordlevel": small("added_tokens", "[]", "normalizer", "null", "pre_tokenizer", `{"type":"Whitespace"}`, "post_processor", "null",
			"model", `{"type":"WordLevel","unk_token":"u","vocab":{"u":0,"a":1,"the":2}}`),
		"bytelevel": small("added_tokens", "[]", "normalizer", `{"type":"NFC"}`, "pre_tokenizer", `{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true}`,
			"post_processor", `{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true}`, "decoder", `{"type":"ByteLevel"}`,
			"model", `{"type":"BPE","merges":["a b","Ġ a","Ġa b"],"vocab":{`+strings.Join(single, ",")+`,"ab":256,"Ġa":257,"Ġab":258}}`),
		"bytefallback": small("added_tokens", "[]", "normalizer", `{"type":"Replace","pattern":{"String":" "},"content":"▁"}`, "pre_tokenizer", "null", "post_processor", "null",
			"decoder", `{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]}`,
			"model", `{"type":"BPE","byte_fallback":true,"unk_token":"u","fuse_unk":true,"merges":[["a","b"],["▁","a"]],"vocab":{"u":0,"a":1,"b":2,"▁":3,"ab":4,"▁a":5,`+strings.Join(bytes, ",")+`}}`),
		"unigram": small("added_tokens", `[`+addedJSON(0, "<s>", "lstrip")+`,`+addedJSON(7, "new", "normalized")+`]`, "normalizer", `{"type":"NFKC"}`,
			"pre_tokenizer", `{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"}`, "post_processor", "null",
			"decoder", `{"type":"Metaspace","replacement":"▁"}`,
			"model", `{"type":"Unigram","unk_id":1,"vocab":[["<s>",0],["u",0],["a",-1],["b",-2.5],["ab",-2],["▁",-1],["▁a",-1.5]]}`),
	}
}

// TestHostileCompiled overwrites parts of compiled tokenizers with bytes that are likely to matter.
func TestHostileCompiled(t *testing.T) {
	for name, file := range tinyFiles() {
		t.Run(name, func(t *testing.T) {
			good := mustJSON(t, file).Compiled()
			opened := 0
			for seed := range uint64(3000) {
				r := rand.New(rand.NewPCG(seed, 1))
				b := append([]byte(nil), good...)
				for range 1 + r.IntN(12) {
					at := r.IntN(len(b)-4) &^ 3
					switch r.IntN(4) {
					case 0:
						b[at] ^= 1 << r.IntN(8)
					case 1:
						binary.LittleEndian.PutUint32(b[at:], []uint32{0, 1, 1 << 31, 1<<32 - 1, 1<<31 - 1}[r.IntN(5)])
					case 2:
						binary.LittleEndian.PutUint32(b[at:], r.Uint32N(400))
					case 3:
						copy(b[at:], b[r.IntN(len(b)-64):][:min(64, len(b)-at)])
					}
				}
				if tok, err := Open(b); err == nil {
					opened++
					useHostile(t, tok)
				}
			}
			for n := 0; n < len(good); n += 61 { // cut off
				if tok, err := Open(good[:n]); err == nil {
					useHostile(t, tok)
				}
			}
			if opened < 300 {
				t.Errorf("only %d of 3000 were opened", opened)
			}
		})
	}
}

// FuzzOpen: no compiled form panics.
func FuzzOpen(f *testing.F) {
	for _, file := range tinyFiles() {
		f.Add(mustJSON(f, file).Compiled())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if tok, err := Open(append([]byte(nil), b...)); err == nil {
			useHostile(t, tok)
		}
	})
}

// FuzzModels: no text panics, with each kind of model, and offsets are those of checkEncoding.
func FuzzModels(f *testing.F) {
	var toks []*Tokenizer
	for _, name := range sortedKeys(tinyFiles()) {
		toks = append(toks, mustJSON(f, tinyFiles()[name]))
	}
	for _, text := range hostileTexts {
		f.Add(text, "a b")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if len(a)+len(b) > 1<<12 {
			return
		}
		for _, tok := range toks {
			for _, texts := range [][]string{{a}, {a, b}} {
				e, err := tok.Encode(texts[0], texts[1:]...)
				if err != nil {
					t.Fatal(err)
				}
				checkEncoding(t, e, texts...)
				tok.Decode(e.IDs, true)
			}
		}
	})
}

// FuzzSentencePiece: no file panics.
func FuzzSentencePiece(f *testing.F) {
	f.Add([]byte("\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\x0a\x08\x0a\x01a\x15\x00\x00\x80\xbf"))
	f.Add([]byte("\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\x0a\x08\x0a\x01a\x15\x00\x00\x80\xbf\x12\x02\x18\x02\x1a\x04\x18\x00\x20\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tok, err := FromSentencePiece(b, SentencePieceOptions{}); err == nil {
			useHostile(t, tok)
		}
	})
}

func quoted(s string) string { b, _ := json.Marshal(s); return string(b) }

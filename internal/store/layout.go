package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/tensor"
)

// SegmentFormat is the version of the rules below. It stands in every segment's metadata.
const SegmentFormat = 1

// Alignment of tensors in a segment's file, by size. Smaller ones are aligned to their element.
const (
	lineBytes   = 64      // from lineSize
	lineSize    = 4 << 10 //
	pageSize    = 1 << 20 // from here a tensor starts on a page
	metaFormat  = "zcstore.segment_format"
	metaAliases = "zcstore.aliases"
	metaCRC     = "zcstore.crc32c"
	metaName    = "zcstore.name"    // what the version was put as, for a catalog that is made anew (fsck.go)
	metaVersion = "zcstore.version" // and which version that was
)

// layout is where the rows of a new segment go. The file is a valid safetensors file: the format allows no holes, so rows are
// ordered to need no padding where that is possible, and a U8 tensor called __pad__.N fills the rest.
type layout struct {
	header []byte
	offset map[int]int64 // row -> offset in the file
	size   int64

	entries []int // of the header: a row, or -1-N for padding of N bytes
	nameAt  int   // where it has the version's digest
	crcAt   int   // where the header has the entries' checksums, eight hexadecimal digits each; 0: it has none
}

// layOut places the rows of m that rows lists. name is a hint that is written beside them.
func layOut(m *manifest.Manifest, rows []int, name string) (*layout, error) {
	order := slices.Clone(rows)
	slices.SortStableFunc(order, func(a, b int) int {
		ca, cb := class(&m.Tensors[a]), class(&m.Tensors[b])
		if ca != cb {
			return cmp.Compare(ca, cb)
		}
		return cmp.Compare(m.Tensors[b].DType.Size(), m.Tensors[a].DType.Size())
	})
	h := safetensors.Header{Metadata: map[string]string{metaFormat: strconv.Itoa(SegmentFormat)}}
	h.Metadata[metaName], h.Metadata[metaVersion] = name, strings.Repeat("0", 64)
	aliases := map[string][]string{}
	at := int64(0)
	var entries []int
	for _, r := range order {
		t := &m.Tensors[r]
		size := int64(t.Bytes())
		if pad := padding(at, alignment(t)); pad > 0 && size > 0 {
			h.Entries = append(h.Entries, padEntry(len(h.Entries), at, pad))
			entries = append(entries, -1-int(pad))
			at += pad
		}
		entries = append(entries, r)
		h.Entries = append(h.Entries, safetensors.Entry{Name: t.Names[0], DType: t.DType, Shape: t.Shape, Begin: at, End: at + size})
		at += size
		if len(t.Names) > 1 {
			aliases[t.Names[0]] = t.Names[1:]
		}
	}
	if len(aliases) > 0 {
		b, err := json.Marshal(aliases)
		if err != nil {
			return nil, err
		}
		h.Metadata[metaAliases] = string(b)
	}
	// The checksums are not known yet, but their length is. A segment of very many tensors goes without: a header's metadata
	// is bounded.
	if 8*len(entries)+len(h.Metadata[metaAliases])+1024 <= safetensors.MaxMetadataBytes {
		h.Metadata[metaCRC] = strings.Repeat("0", 8*len(entries))
	}
	header, err := h.Encode(shm.PageSize)
	if err != nil {
		return nil, fmt.Errorf("lay out segment: %w", err)
	}
	l := &layout{header: header, offset: make(map[int]int64, len(rows)), size: int64(len(header)) + at, entries: entries}
	l.nameAt = valueAt(header, metaVersion)
	if len(h.Metadata[metaCRC]) > 0 {
		l.crcAt = valueAt(header, metaCRC)
	}
	byName := make(map[string]int64, len(h.Entries))
	for _, e := range h.Entries {
		byName[e.Name] = int64(len(header)) + e.Begin
	}
	for _, r := range rows {
		l.offset[r] = byName[m.Tensors[r].Names[0]]
	}
	return l, nil
}

// valueAt is where the value of a key of the metadata begins.
func valueAt(header []byte, key string) int {
	// No name and no alias can hold this: in a JSON string every quote has a backslash before it.
	mark := []byte(`"` + key + `":"`)
	return bytes.Index(header, mark) + len(mark)
}

// class orders rows so that each leaves the next one aligned: whole pages, whole lines, then odd sizes with the strictest
// alignment first.
func class(t *manifest.Tensor) int {
	size := t.Bytes()
	switch {
	case size >= pageSize && size%shm.PageSize == 0:
		return 0
	case size >= pageSize:
		return 1
	case size >= lineSize && size%lineBytes == 0:
		return 2
	case size >= lineSize:
		return 3
	}
	return 4
}

func alignment(t *manifest.Tensor) int64 {
	switch size := t.Bytes(); {
	case size >= pageSize:
		return shm.PageSize
	case size >= lineSize:
		return lineBytes
	}
	return int64(t.DType.Size())
}

func padding(at, align int64) int64 { return (align - at%align) % align }

func padEntry(n int, at, size int64) safetensors.Entry {
	return safetensors.Entry{Name: "__pad__." + strconv.Itoa(n), DType: tensor.U8, Shape: []int{int(size)}, Begin: at, End: at + size}
}

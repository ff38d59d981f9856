package safetensors

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/zcstore/zcstore/shm/tensor"
)

// The header is read with a scanner of its own because a general JSON decoder is too kind to a file that nobody
// vouches for: encoding/json takes the last of two equal keys, takes DTYPE for dtype, null for a dimension and
// replaces bytes that are not UTF-8. The grammar is small and flat, so there is no recursion to bound.

// parser reads one header. The errors it returns are made by fail, which knows where the parser stands.
type parser struct {
	b      []byte // the header, without the length before it
	pos    int
	tensor string // the tensor being read, for errors
	field  string // the field being read, for errors

	dims []int // backing of the shapes
}

// fail makes an error for the byte at pos of the header.
func (p *parser) fail(pos int, format string, args ...any) error {
	return &FormatError{Offset: prefixBytes + int64(pos), Tensor: p.tensor, Field: p.field, Msg: fmt.Sprintf(format, args...)}
}

// parse reads and checks a header for a file of size bytes.
func parse(header []byte, size int64) (*Header, error) {
	p := &parser{b: header}
	if header[0] != '{' {
		return nil, p.fail(0, "the header starts with %s, not with '{'", p.found(0))
	}
	h := &Header{DataStart: prefixBytes + int64(len(header)), index: map[string]int{}}
	var places []int // where the data_offsets of each entry stand
	err := p.object(func(key string, at int) error {
		if key == metadataKey {
			if h.Metadata != nil {
				return p.fail(at, "duplicate key %s", quote(key))
			}
			return p.metadata(h)
		}
		if msg := checkName(key); msg != "" {
			return p.fail(at, "%s", msg)
		}
		if _, dup := h.index[key]; dup {
			return p.fail(at, "duplicate key %s", quote(key))
		}
		if len(h.Entries) == MaxTensors {
			return p.fail(at, "more than %d tensors", MaxTensors)
		}
		p.tensor = key
		e, place, err := p.entry(key, at)
		p.tensor, p.field = "", ""
		if err != nil {
			return err
		}
		h.index[key] = len(h.Entries)
		h.Entries = append(h.Entries, e)
		places = append(places, place)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := p.pos; i < len(p.b); i++ {
		if p.b[i] != ' ' {
			return nil, p.fail(i, "%s after the JSON object, only spaces may follow", p.found(i))
		}
	}
	data := int64(-1) // of a stream: nobody knows
	if size >= 0 {
		data = size - h.DataStart
	}
	if err := p.layout(h, places, data); err != nil {
		return nil, err
	}
	return h, nil
}

// layout sorts the entries by offset and checks that they cover the data bytes once each.
func (p *parser) layout(h *Header, places []int, data int64) error {
	byOffset := func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End)) // an empty tensor comes before one with bytes
	}
	if !slices.IsSortedFunc(h.Entries, byOffset) {
		order := make([]int, len(h.Entries))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return byOffset(h.Entries[a], h.Entries[b]) })
		sorted, at := make([]Entry, len(order)), make([]int, len(order))
		for i, from := range order {
			sorted[i], at[i] = h.Entries[from], places[from]
			h.index[sorted[i].Name] = i
		}
		h.Entries, places = sorted, at
	}
	var prev *Entry
	for i := range h.Entries {
		e := &h.Entries[i]
		if msg := checkFollows(*e, prev); msg != "" {
			p.tensor, p.field = e.Name, "data_offsets"
			return p.fail(places[i], "%s", msg)
		}
		prev = e
	}
	switch {
	case data < 0:
	case prev == nil && data != 0:
		return p.fail(len(p.b), "%d bytes follow the header, but it names no tensor", data)
	case prev != nil && prev.End != data:
		p.tensor, p.field = prev.Name, "data_offsets"
		return p.fail(places[len(places)-1], "the last tensor ends at %d, but the file has %d data bytes", prev.End, data)
	}
	return nil
}

// metadata reads the value of __metadata__.
func (p *parser) metadata(h *Header) error {
	p.field = metadataKey
	defer func() { p.field = "" }()
	h.Metadata = map[string]string{}
	total := 0
	return p.object(func(key string, at int) error {
		if _, dup := h.Metadata[key]; dup {
			return p.fail(at, "duplicate key %s", quote(key))
		}
		from := p.pos
		v, err := p.str()
		if err != nil {
			return err
		}
		if total += len(key) + len(v); total > MaxMetadataBytes {
			return p.fail(from, "the metadata is over the limit of %d bytes", MaxMetadataBytes)
		}
		h.Metadata[key] = v
		return nil
	})
}

// entry reads the object of one tensor; at is where its name stands. place is where its data_offsets stand.
func (p *parser) entry(name string, at int) (e Entry, place int, err error) {
	e.Name = name
	var hasDType, hasShape, hasOffsets bool
	shapeAt, dtypeAt := at, at
	err = p.object(func(key string, at int) error {
		once := func(has *bool) error {
			p.field = key
			if *has {
				return p.fail(at, "duplicate key %s", quote(key))
			}
			*has = true
			return nil
		}
		from := p.pos
		switch key {
		case "dtype":
			if err := once(&hasDType); err != nil {
				return err
			}
			dtypeAt = from
			s, err := p.str()
			if err != nil {
				return err
			}
			if e.DType, err = parseDType(s); err != nil {
				return p.fail(from, "%v", err)
			}
		case "shape":
			if err := once(&hasShape); err != nil {
				return err
			}
			shapeAt = from
			start := len(p.dims)
			err := p.array(func(i int) error {
				if i == tensor.MaxRank {
					return p.fail(p.pos, "more than %d dimensions", tensor.MaxRank)
				}
				d, err := p.integer()
				p.dims = append(p.dims, int(d))
				return err
			})
			if err != nil {
				return err
			}
			e.Shape = tensor.Shape{} // a scalar's shape is empty, not nil
			if n := len(p.dims); n > start {
				e.Shape = tensor.Shape(p.dims[start:n:n])
			}
		case "data_offsets":
			if err := once(&hasOffsets); err != nil {
				return err
			}
			place = from
			n := 0
			err := p.array(func(i int) error {
				v, err := p.integer()
				switch n = i + 1; i {
				case 0:
					e.Begin = v
				case 1:
					e.End = v
				default:
					return p.fail(p.pos, "more than two offsets")
				}
				return err
			})
			if err != nil {
				return err
			}
			if n != 2 {
				return p.fail(from, "%d offsets, not begin and end", n)
			}
		default:
			return p.fail(at, "unknown key %s", quote(key))
		}
		p.field = ""
		return nil
	})
	if err != nil {
		return e, 0, err
	}
	for _, f := range []struct {
		name string
		has  bool
	}{{"dtype", hasDType}, {"shape", hasShape}, {"data_offsets", hasOffsets}} {
		if !f.has {
			p.field = f.name
			return e, 0, p.fail(at, "missing")
		}
	}
	if field, msg := checkSize(e); msg != "" {
		p.field = field
		return e, 0, p.fail(map[string]int{"dtype": dtypeAt, "shape": shapeAt, "data_offsets": place}[field], "%s", msg)
	}
	return e, place, nil
}

// parseDType refuses the dtypes that the store cannot hold, with the reason.
func parseDType(s string) (tensor.DType, error) {
	switch s {
	case "F4", "F6_E2M3", "F6_E3M2", "I4", "U4":
		return 0, fmt.Errorf("dtype %q has elements smaller than a byte, which are not supported (known: %s)", s, tensor.DTypes())
	}
	d, err := tensor.ParseDType(s)
	if err != nil {
		return 0, fmt.Errorf("unknown dtype %s (known: %s)", quote(s), tensor.DTypes())
	}
	return d, nil
}

// object reads an object and calls member with each key and where it stands; member reads the value.
func (p *parser) object(member func(key string, at int) error) error {
	if err := p.expect('{', "an object"); err != nil {
		return err
	}
	if p.space(); p.peek() == '}' {
		p.pos++
		return nil
	}
	for {
		p.space()
		at := p.pos
		key, err := p.str()
		if err != nil {
			return err
		}
		p.space()
		if err := p.expect(':', "':'"); err != nil {
			return err
		}
		p.space()
		if err := member(key, at); err != nil {
			return err
		}
		if done, err := p.next('}'); done || err != nil {
			return err
		}
	}
}

// array reads an array and calls element for each element, which reads it.
func (p *parser) array(element func(i int) error) error {
	if err := p.expect('[', "an array"); err != nil {
		return err
	}
	if p.space(); p.peek() == ']' {
		p.pos++
		return nil
	}
	for i := 0; ; i++ {
		p.space()
		if err := element(i); err != nil {
			return err
		}
		if done, err := p.next(']'); done || err != nil {
			return err
		}
	}
}

// next reads a comma, or the end of the object or array.
func (p *parser) next(end byte) (done bool, err error) {
	p.space()
	switch p.peek() {
	case ',':
		p.pos++
		return false, nil
	case end:
		p.pos++
		return true, nil
	}
	return false, p.fail(p.pos, "found %s, want ',' or %q", p.found(p.pos), rune(end))
}

func (p *parser) space() {
	for p.pos < len(p.b) {
		switch p.b[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

// peek is the byte at the position, 0 at the end of the header, which no rule takes.
func (p *parser) peek() byte {
	if p.pos < len(p.b) {
		return p.b[p.pos]
	}
	return 0
}

func (p *parser) expect(c byte, what string) error {
	if p.pos >= len(p.b) || p.b[p.pos] != c {
		return p.fail(p.pos, "found %s, want %s", p.found(p.pos), what)
	}
	p.pos++
	return nil
}

// found describes the byte at pos for an error.
func (p *parser) found(pos int) string {
	switch {
	case pos >= len(p.b):
		return "the end of the header"
	case p.b[pos] < 0x20 || p.b[pos] >= 0x7f:
		return fmt.Sprintf("byte 0x%02x", p.b[pos])
	}
	return fmt.Sprintf("%q", rune(p.b[pos]))
}

// integer reads a number of the form 0 or [1-9][0-9]*, at most 2^63-1.
func (p *parser) integer() (int64, error) {
	start := p.pos
	var n uint64
	for ; p.pos < len(p.b) && p.b[p.pos] >= '0' && p.b[p.pos] <= '9'; p.pos++ {
		if n > (math.MaxInt64-uint64(p.b[p.pos]-'0'))/10 {
			return 0, p.fail(start, "the number is over %d", int64(math.MaxInt64))
		}
		n = n*10 + uint64(p.b[p.pos]-'0')
	}
	switch {
	case p.pos == start && p.peek() == '-':
		return 0, p.fail(start, "negative number")
	case p.pos == start:
		return 0, p.fail(start, "found %s, want a number", p.found(start))
	case p.b[start] == '0' && p.pos > start+1:
		return 0, p.fail(start, "number with a leading zero")
	case p.peek() == '.' || p.peek() == 'e' || p.peek() == 'E':
		return 0, p.fail(start, "the number is not an integer")
	}
	return int64(n), nil
}

// str reads a string. It must be UTF-8 without bare control characters, and its surrogate escapes must come in pairs.
func (p *parser) str() (string, error) {
	if err := p.expect('"', "a string"); err != nil {
		return "", err
	}
	start := p.pos
	for p.pos < len(p.b) { // the common case, no escapes: one copy
		switch c := p.b[p.pos]; {
		case c == '"':
			s := p.b[start:p.pos]
			if err := p.checkUTF8(start, s); err != nil {
				return "", err
			}
			p.pos++
			switch string(s) { // half of all strings: spare the allocation
			case "dtype":
				return "dtype", nil
			case "shape":
				return "shape", nil
			case "data_offsets":
				return "data_offsets", nil
			}
			return string(s), nil
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			return "", p.fail(p.pos, "bare control character 0x%02x in a string", c)
		}
		p.pos++
	}
	return "", p.fail(p.pos, "the string has no end")
}

// escaped reads the rest of a string that has escapes; start is its first byte, p.pos the first backslash.
func (p *parser) escaped(start int) (string, error) {
	if err := p.checkUTF8(start, p.b[start:p.pos]); err != nil {
		return "", err
	}
	out := append([]byte(nil), p.b[start:p.pos]...)
	for p.pos < len(p.b) {
		switch c := p.b[p.pos]; {
		case c == '"':
			p.pos++
			return string(out), nil
		case c < 0x20:
			return "", p.fail(p.pos, "bare control character 0x%02x in a string", c)
		case c != '\\':
			r, n := utf8.DecodeRune(p.b[p.pos:])
			if r == utf8.RuneError && n <= 1 {
				return "", p.fail(p.pos, "the string is not UTF-8")
			}
			out = append(out, p.b[p.pos:p.pos+n]...)
			p.pos += n
		default:
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		}
	}
	return "", p.fail(p.pos, "the string has no end")
}

// escape reads one escape sequence, or the two of a surrogate pair.
func (p *parser) escape() (rune, error) {
	at := p.pos
	p.pos++ // the backslash
	c := p.peek()
	p.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
	default:
		return 0, p.fail(at, "unknown escape in a string")
	}
	r, err := p.hex4()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if p.pos+1 < len(p.b) && p.b[p.pos] == '\\' && p.b[p.pos+1] == 'u' {
		p.pos += 2
		low, err := p.hex4()
		if err != nil {
			return 0, err
		}
		if full := utf16.DecodeRune(r, low); full != utf8.RuneError {
			return full, nil
		}
	}
	return 0, p.fail(at, "half of a surrogate pair in a string")
}

func (p *parser) hex4() (rune, error) {
	var r rune
	for i := 0; i < 4; i++ {
		c := p.peek()
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, p.fail(p.pos, "found %s in an escape, want a hexadecimal digit", p.found(p.pos))
		}
		r = r<<4 | rune(c)
		p.pos++
	}
	return r, nil
}

func (p *parser) checkUTF8(start int, s []byte) error {
	if utf8.Valid(s) {
		return nil
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRune(s[i:])
		if r == utf8.RuneError && n <= 1 {
			return p.fail(start+i, "the string is not UTF-8")
		}
		i += n
	}
	return nil
}

package pickle

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// Bounds of a pickle. A state dict of 100,000 tensors has about 5 million opcodes.
const (
	maxOps   = 1 << 26
	maxStack = 1 << 22
	maxMemo  = 1 << 24
	maxText  = 1 << 20 // bytes of one text
)

// What is on the stack, beside bool, int64, float64 and string.
type (
	none  struct{}
	mark  struct{}
	tuple []any
	list  struct{ items []any }
	// dict keeps the order of its keys. A key that is no text is of no use here, and so is its value.
	dict struct {
		keys   []string
		values map[string]any
	}
	global  struct{ module, name string }
	storage struct {
		key    string
		kind   string // "FloatStorage"
		length int64  // in elements
	}
)

func (d *dict) set(key, value any) {
	k, ok := key.(string)
	if !ok {
		return
	}
	if d.values == nil {
		d.values = map[string]any{}
	}
	if _, again := d.values[k]; !again {
		d.keys = append(d.keys, k)
	}
	d.values[k] = value
}

// machine runs pickles that lie one after the other.
type machine struct {
	in    *bufio.Reader
	at    int64 // bytes read
	size  int64
	stack []any
	memo  map[int64]any
	ops   int
	err   error
}

func newMachine(r io.Reader, size int64) *machine {
	return &machine{in: bufio.NewReader(r), size: size}
}

func damaged(format string, args ...any) error {
	return zcerr.New(zcerr.Invalid, "the pickle is damaged: "+format, args...)
}

// fail keeps the first error; whatever is read after it is zero.
func (m *machine) fail(err error) {
	if m.err == nil {
		m.err = err
	}
}

// bytes reads n bytes, which are there: n is held against the size of the file before memory is taken.
func (m *machine) bytes(n int64) []byte {
	if m.err == nil && (n < 0 || n > m.size-m.at) {
		m.fail(damaged("at byte %d it wants %d more, and there are %d", m.at, n, m.size-m.at))
	}
	if m.err != nil {
		return make([]byte, min(max(n, 0), 8))
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(m.in, b); err != nil {
		m.fail(err)
	}
	m.at += n
	return b
}

func (m *machine) byte() byte    { return m.bytes(1)[0] }
func (m *machine) uint16() int64 { return int64(binary.LittleEndian.Uint16(m.bytes(2))) }
func (m *machine) uint32() int64 { return int64(binary.LittleEndian.Uint32(m.bytes(4))) }
func (m *machine) count(n int64) int64 {
	if n > maxText {
		m.fail(damaged("a text of %d bytes at byte %d, at most %d are read", n, m.at, maxText))
		return 0
	}
	return n
}

func (m *machine) text(n int64) string {
	b := m.bytes(m.count(n))
	if !utf8.Valid(b) {
		m.fail(damaged("a text that is not UTF-8 at byte %d", m.at))
	}
	return string(b)
}

func (m *machine) line() string {
	var b []byte
	for m.err == nil {
		c := m.byte()
		if c == '\n' {
			break
		}
		if b = append(b, c); len(b) > 1024 {
			m.fail(damaged("a line of over 1024 bytes at byte %d", m.at))
		}
	}
	return string(b)
}

func (m *machine) push(v any) {
	if len(m.stack) >= maxStack {
		m.fail(damaged("its stack grows over %d values", maxStack))
		return
	}
	m.stack = append(m.stack, v)
}

func (m *machine) pop() any {
	n := len(m.stack)
	if n == 0 {
		m.fail(damaged("it takes from an empty stack at byte %d", m.at))
		return none{}
	}
	v := m.stack[n-1]
	m.stack = m.stack[:n-1]
	return v
}

// popMark takes what lies above the last mark, and the mark.
func (m *machine) popMark() []any {
	for i := len(m.stack) - 1; i >= 0; i-- {
		if _, ok := m.stack[i].(mark); ok {
			items := append([]any(nil), m.stack[i+1:]...)
			m.stack = m.stack[:i]
			return items
		}
	}
	m.fail(damaged("it wants a mark that is not there at byte %d", m.at))
	return nil
}

func (m *machine) put(at int64) {
	if len(m.stack) == 0 || len(m.memo) >= maxMemo {
		m.fail(damaged("it notes nothing, or more than %d values, at byte %d", maxMemo, m.at))
		return
	}
	m.memo[at] = m.stack[len(m.stack)-1]
}

func (m *machine) get(at int64) {
	v, ok := m.memo[at]
	if !ok {
		m.fail(damaged("it recalls value %d that it has not noted, at byte %d", at, m.at))
	}
	m.push(v)
}

// run runs one pickle and gives its value.
func (m *machine) run() (any, error) {
	m.stack, m.memo = m.stack[:0], map[int64]any{}
	for m.err == nil {
		if m.ops++; m.ops > maxOps {
			m.fail(damaged("it has over %d operations", maxOps))
			break
		}
		if m.step(m.byte()) {
			v := m.pop()
			if m.err == nil && len(m.stack) > 0 {
				m.fail(damaged("%d values are left on its stack", len(m.stack)))
			}
			return v, m.err
		}
	}
	return nil, m.err
}

// step runs one operation; done is true for the last one of a pickle. The operations are those that the protocols 2 to 5 have
// for plain data and calls.
func (m *machine) step(op byte) (done bool) {
	switch op {
	case 0x80: // PROTO
		if v := m.byte(); m.err == nil && (v < 2 || v > 5) {
			m.fail(zcerr.New(zcerr.Unsupported, "pickle protocol %d is not supported (2 to 5 are)", v))
		}
	case 0x95: // FRAME
		m.bytes(8)
	case '.': // STOP
		return m.err == nil
	case '(': // MARK
		m.push(mark{})
	case '0': // POP
		m.pop()
	case '2': // DUP
		v := m.pop()
		m.push(v)
		m.push(v)
	case 'N':
		m.push(none{})
	case 0x88: // NEWTRUE
		m.push(true)
	case 0x89: // NEWFALSE
		m.push(false)
	case 'J': // BININT
		m.push(int64(int32(m.uint32())))
	case 'K': // BININT1
		m.push(int64(m.byte()))
	case 'M': // BININT2
		m.push(m.uint16())
	case 0x8a: // LONG1
		m.push(m.long(int64(m.byte())))
	case 'G': // BINFLOAT
		m.push(math.Float64frombits(binary.BigEndian.Uint64(m.bytes(8))))
	case 'X', 'T': // BINUNICODE, BINSTRING
		m.push(m.text(m.uint32()))
	case 0x8c, 'U': // SHORT_BINUNICODE, SHORT_BINSTRING
		m.push(m.text(int64(m.byte())))
	case 'q': // BINPUT
		m.put(int64(m.byte()))
	case 'r': // LONG_BINPUT
		m.put(m.uint32())
	case 0x94: // MEMOIZE
		m.put(int64(len(m.memo)))
	case 'h': // BINGET
		m.get(int64(m.byte()))
	case 'j': // LONG_BINGET
		m.get(m.uint32())
	case ')': // EMPTY_TUPLE
		m.push(tuple(nil))
	case 't': // TUPLE
		m.push(tuple(m.popMark()))
	case 0x85, 0x86, 0x87: // TUPLE1 to TUPLE3
		t := make(tuple, op-0x84)
		for i := len(t) - 1; i >= 0; i-- {
			t[i] = m.pop()
		}
		m.push(t)
	case ']': // EMPTY_LIST
		m.push(&list{})
	case 'a': // APPEND
		m.extend([]any{m.pop()})
	case 'e': // APPENDS
		m.extend(m.popMark())
	case '}': // EMPTY_DICT
		m.push(&dict{})
	case 's': // SETITEM
		v := m.pop()
		m.setItems([]any{m.pop(), v})
	case 'u': // SETITEMS
		m.setItems(m.popMark())
	case 'c': // GLOBAL
		module := m.line()
		m.global(module, m.line())
	case 0x93: // STACK_GLOBAL
		name, _ := m.pop().(string)
		module, _ := m.pop().(string)
		m.global(module, name)
	case 'Q': // BINPERSID
		v, err := persistent(m.pop())
		if err != nil {
			m.fail(err)
		}
		m.push(v)
	case 'R': // REDUCE
		args, _ := m.pop().(tuple)
		f, ok := m.pop().(global)
		if !ok && m.err == nil {
			m.fail(damaged("it calls something that is no function at byte %d", m.at))
			return false
		}
		v, err := call(f, args)
		if err != nil {
			m.fail(err)
		}
		m.push(v)
	case 'b': // BUILD: attributes of an OrderedDict, which state dicts keep their versions in
		m.pop()
		if len(m.stack) > 0 && m.err == nil {
			if _, ok := m.stack[len(m.stack)-1].(*dict); !ok {
				m.fail(zcerr.New(zcerr.Unsupported, "the pickle sets attributes of a %s, which is not supported", describe(m.stack[len(m.stack)-1])).WithHint(saveHint))
			}
		}
	default:
		m.fail(zcerr.New(zcerr.Unsupported, "the pickle has the operation %#02x at byte %d, which is not of plain data and tensors", op, m.at-1).WithHint(saveHint))
	}
	return false
}

// long is an integer of n bytes, little-endian, in two's complement.
func (m *machine) long(n int64) any {
	b := m.bytes(n)
	if len(b) > 8 { // seeds, and the magic number of the stream layout
		return strconv.Quote(string(b))
	}
	var v uint64
	for i, c := range b {
		v |= uint64(c) << (8 * i)
	}
	if n := len(b); n > 0 && n < 8 && b[n-1]&0x80 != 0 {
		v |= ^uint64(0) << (8 * n)
	}
	return int64(v)
}

func (m *machine) extend(items []any) {
	if len(m.stack) == 0 {
		m.fail(damaged("it appends to nothing at byte %d", m.at))
		return
	}
	if l, ok := m.stack[len(m.stack)-1].(*list); ok {
		l.items = append(l.items, items...)
	} else {
		m.fail(damaged("it appends to a %s at byte %d", describe(m.stack[len(m.stack)-1]), m.at))
	}
}

func (m *machine) setItems(items []any) {
	if len(m.stack) == 0 || len(items)%2 != 0 {
		m.fail(damaged("it sets items of nothing at byte %d", m.at))
		return
	}
	d, ok := m.stack[len(m.stack)-1].(*dict)
	if !ok {
		m.fail(damaged("it sets items of a %s at byte %d", describe(m.stack[len(m.stack)-1]), m.at))
		return
	}
	for i := 0; i < len(items); i += 2 {
		d.set(items[i], items[i+1])
	}
}

func (m *machine) global(module, name string) {
	g := global{module, name}
	if m.err == nil && !known(g) {
		m.fail(&GlobalError{Module: module, Name: name})
	}
	m.push(g)
}

// describe names a value for errors.
func describe(v any) string {
	switch v := v.(type) {
	case none:
		return "None"
	case bool:
		return "bool"
	case int64, float64:
		return "number"
	case string:
		return "text"
	case tuple:
		return "tuple"
	case *list:
		return "list"
	case *dict:
		return "dict"
	case *Tensor:
		return "tensor"
	case storage:
		return "storage"
	case global:
		return v.module + "." + v.name
	}
	return fmt.Sprintf("%T", v)
}

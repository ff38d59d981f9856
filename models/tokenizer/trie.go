package tokenizer

import (
	"bytes"
	"slices"
)

// trie is a double array over bytes, three words a node: where its children start, whose child it is plus one, and its
// value plus one. The child for byte c of node s is base(s)+c if that node says that it is a child of s. The root is node 0.
type trie []uint32

const noValue = -1

// step is the child of node for c, or -1. No table makes it read outside of itself.
func (t trie) step(node int, c byte) int {
	next := int(t[3*node]) + int(c)
	if 3*next+2 < len(t) && t[3*next+1] == uint32(node)+1 {
		return next
	}
	return -1
}

func (t trie) value(node int) int32 { return int32(t[3*node+2]) - 1 }

// longest is the value of the longest key that text starts with and its length, or noValue.
func (t trie) longest(text []byte) (value int32, length int) {
	value = noValue
	if len(t) < 3 {
		return value, 0
	}
	node := 0
	for i, c := range text {
		if node = t.step(node, c); node < 0 {
			break
		}
		if v := t.value(node); v >= 0 {
			value, length = v, i+1
		}
	}
	return value, length
}

// trieKey is a key with its value, which is not negative.
type trieKey struct {
	key   []byte
	value int32
}

// newTrie builds a trie. Of equal keys the first keeps its value. Empty keys are not taken.
func newTrie(keys []trieKey) trie {
	keys = slices.Clone(keys)
	slices.SortStableFunc(keys, func(a, b trieKey) int { return bytes.Compare(a.key, b.key) })
	keys = slices.CompactFunc(keys, func(a, b trieKey) bool { return bytes.Equal(a.key, b.key) })
	b := &trieBuilder{}
	b.grow(1)
	b.used[0] = true
	b.free = 1
	b.place(0, keys, 0)
	return b.t[:3*(b.last+1)]
}

type trieBuilder struct {
	t    trie
	used []bool
	free int // no node before it is free
	last int
}

func (b *trieBuilder) grow(n int) {
	for n > len(b.used) {
		b.used = append(b.used, make([]bool, max(1024, len(b.used)))...)
	}
	if 3*len(b.used) > len(b.t) {
		b.t = append(b.t, make(trie, 3*len(b.used)-len(b.t))...)
	}
}

// place puts the children of node, whose keys agree in the first depth bytes.
func (b *trieBuilder) place(node int, keys []trieKey, depth int) {
	if len(keys) > 0 && len(keys[0].key) == depth {
		if depth > 0 {
			b.t[3*node+2] = uint32(keys[0].value) + 1
		}
		keys = keys[1:]
	}
	if len(keys) == 0 {
		return
	}
	var chars []byte
	for i, k := range keys {
		if c := k.key[depth]; i == 0 || c != chars[len(chars)-1] {
			chars = append(chars, c)
		}
	}
	base := b.find(chars)
	b.t[3*node] = uint32(base)
	for _, c := range chars {
		n := base + int(c)
		b.used[n] = true
		b.t[3*n+1] = uint32(node) + 1
		b.last = max(b.last, n)
	}
	for len(keys) > 0 {
		c, n := keys[0].key[depth], 1
		for n < len(keys) && keys[n].key[depth] == c {
			n++
		}
		b.place(base+int(c), keys[:n], depth+1)
		keys = keys[n:]
	}
}

// find is a base at which all chars are free.
func (b *trieBuilder) find(chars []byte) int {
	for b.free < len(b.used) && b.used[b.free] {
		b.free++
	}
	tries := 0
	for n := max(b.free, int(chars[0])+1); ; n++ {
		// A crowded start is given up, so that building stays linear. Nodes with one child fill its holes.
		if tries++; tries == 256 {
			n = max(n, b.last)
		}
		b.grow(n + 257)
		if b.used[n] {
			continue
		}
		base := n - int(chars[0])
		ok := true
		for _, c := range chars[1:] {
			if b.used[base+int(c)] {
				ok = false
				break
			}
		}
		if ok {
			return base
		}
	}
}

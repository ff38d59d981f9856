package tokenizer

import (
	"fmt"
	"slices"
)

// pad brings the encodings and their overflowing parts to one length.
func (t *Tokenizer) pad(batch []*Encoding) error {
	p := t.padding
	length := 0
	switch p.Strategy {
	case NoPadding:
		return nil
	case PadFixed:
		length = p.Length
	case PadLongest:
		for _, e := range batch {
			length = max(length, len(e.IDs))
		}
	}
	if p.Strategy > PadFixed || p.Direction > Left || p.Length < 0 || p.MultipleOf < 0 || p.Length > MaxPadding || p.MultipleOf > MaxPadding {
		return fmt.Errorf("tokenizer: padding %+v is invalid", p)
	}
	if p.MultipleOf > 0 {
		length = (length + p.MultipleOf - 1) / p.MultipleOf * p.MultipleOf
	}
	for _, e := range batch {
		e.pad(length, p)
		for i := range e.Overflowing {
			e.Overflowing[i].pad(length, p)
		}
	}
	return nil
}

func (e *Encoding) pad(length int, p Padding) {
	n := length - len(e.IDs)
	if n <= 0 {
		return
	}
	left := p.Direction == Left
	e.IDs = padded(e.IDs, p.ID, n, left)
	e.TypeIDs = padded(e.TypeIDs, p.TypeID, n, left)
	e.Mask = padded(e.Mask, 0, n, left)
	e.SpecialMask = padded(e.SpecialMask, 1, n, left)
	e.Tokens = padded(e.Tokens, p.Token, n, left)
	e.Offsets = padded(e.Offsets, Span{}, n, left)
	e.Bytes = padded(e.Bytes, Span{}, n, left)
	e.Input = padded(e.Input, -1, n, left)
}

func padded[T any](s []T, v T, n int, left bool) []T {
	fill := slices.Repeat([]T{v}, n)
	if left {
		return append(fill, s...)
	}
	return append(s, fill...)
}

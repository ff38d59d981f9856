package tokenizer

import "fmt"

// maxOverflow bounds the tokens of all overflowing parts together: a stride close to the length, or two long texts,
// would otherwise multiply.
const maxOverflow = 16 << 20

// parts are both texts cut to size: first what stays, then the overflowing parts in order.
type parts struct{ a, b [][]token }

// truncate cuts the texts so that they and added special tokens have at most MaxLength tokens.
func (t *Tokenizer) truncate(a, b []token, pair bool, added int) (parts, error) {
	na, nb, err := t.keep(len(a), len(b), pair, added)
	if err != nil || na == len(a) && nb == len(b) {
		return parts{[][]token{a}, [][]token{b}}, err
	}
	return parts{t.cut(a, na), t.cut(b, nb)}, nil
}

// keep is how many of the tokens of both texts stay.
func (t *Tokenizer) keep(na, nb int, pair bool, added int) (int, int, error) {
	tr := t.truncation
	if tr == (Truncation{}) || tr.MaxLength == 0 {
		return na, nb, nil
	}
	if tr.MaxLength < 0 || tr.Stride < 0 || tr.Strategy > OnlySecond || tr.Direction > Left {
		return 0, 0, fmt.Errorf("tokenizer: truncation %+v is invalid", tr)
	}
	limit := tr.MaxLength - added
	if limit < 0 {
		return 0, 0, fmt.Errorf("tokenizer: truncation to %d tokens leaves no room for the %d special tokens", tr.MaxLength, added)
	}
	excess := na + nb - limit
	if excess <= 0 {
		return na, nb, nil
	}
	allA, allB := na, nb
	switch {
	case limit == 0:
		na, nb = 0, 0
	case tr.Strategy == LongestFirst:
		na, nb = share(na, nb, limit, pair)
	case tr.Strategy == OnlySecond && !pair:
		return 0, 0, fmt.Errorf("tokenizer: truncation of the second text only, but there is none")
	case tr.Strategy == OnlyFirst:
		na -= excess
	default:
		nb -= excess
	}
	if na < 0 || nb < 0 || limit > 0 && (tr.Strategy == OnlyFirst && na == 0 || tr.Strategy == OnlySecond && nb == 0) {
		return 0, 0, fmt.Errorf("tokenizer: %d tokens have to go, the text to be truncated does not have more", excess)
	}
	for _, n := range [2][2]int{{na, allA}, {nb, allB}} {
		if n[0] > 0 && n[0] < n[1] && n[0] <= tr.Stride {
			return 0, 0, fmt.Errorf("tokenizer: the stride of %d must be less than the %d tokens that are left of the text", tr.Stride, n[0])
		}
	}
	return na, nb, nil
}

// share divides limit between two texts: the longer one is cut until both are equal, then both are.
func share(na, nb, limit int, pair bool) (int, int) {
	if !pair {
		return limit, 0
	}
	short, long := min(na, nb), max(na, nb)
	if short <= limit {
		long = max(short, limit-short)
	}
	if short+long > limit {
		short = limit / 2
		long = short + limit%2
	}
	if na > nb {
		return long, short
	}
	return short, long
}

// cut divides tokens into parts of n, which is more than the stride. Without overflow only the part that stays is made.
func (t *Tokenizer) cut(tokens []token, n int) [][]token {
	total := len(tokens)
	if n >= total {
		return [][]token{tokens}
	}
	if n == 0 {
		return [][]token{nil, tokens}
	}
	step := n - t.truncation.Stride
	var out [][]token
	for i := 0; ; i += step {
		start, stop := i, min(i+n, total)
		if t.truncation.Direction == Left {
			start, stop = max(total-i-n, 0), total-i
		}
		out = append(out, tokens[start:stop])
		if !t.overflow || t.truncation.Direction == Left && start == 0 || t.truncation.Direction == Right && stop == total {
			return out
		}
	}
}

// rest emits all combinations of parts but the first, in the order in which the library merges them.
func (p parts) rest(frame pieces, emit func(a, b []token)) error {
	n := len(p.a) * len(p.b)
	if each := len(p.a[0]) + len(p.b[0]) + frame.added(); n-1 > 0 && (n-1)*each > maxOverflow {
		return fmt.Errorf("tokenizer: %d overflowing parts of %d tokens are over the limit of %d tokens", n-1, each, maxOverflow)
	}
	first, second := p.a, p.b
	swapped := false
	for _, x := range frame { // the input that stands first in the template varies slowest
		if x.input >= 0 {
			swapped = x.input == 1
			break
		}
	}
	if swapped {
		first, second = p.b, p.a
	}
	each := func(x, y []token) {
		if swapped {
			x, y = y, x
		}
		emit(x, y)
	}
	for _, x := range first[1:] {
		for _, y := range second {
			each(x, y)
		}
	}
	for _, y := range second[1:] {
		each(first[0], y)
	}
	return nil
}

package encoder

import "fmt"

// Batch is texts as token ids, one text behind the other. Text i is the tokens from Starts[i] to Starts[i+1], so that
// Starts begins with 0 and ends with the number of tokens.
type Batch struct {
	IDs       []int32
	Starts    []int
	TypeIDs   []int32 // nil: 0 for all
	Positions []int32 // rows of the table of positions; nil: one after the other in each text, as the family counts them
	Mask      []int32 // nil: all 1. Tokens with 0 are not attended to, nor do they count in a mean.
}

// NewBatch is the batch of these texts.
func NewBatch(texts [][]int32) Batch {
	b := Batch{Starts: make([]int, 1, len(texts)+1)}
	for _, t := range texts {
		b.IDs = append(b.IDs, t...)
		b.Starts = append(b.Starts, len(b.IDs))
	}
	return b
}

// Len is the number of texts.
func (b *Batch) Len() int { return max(len(b.Starts)-1, 0) }

// BatchError says which text of a batch the model cannot take.
type BatchError struct {
	Text   int // -1: the batch as a whole
	Reason string
}

// ErrorKind is the kind in the words of proto/zcerr.
func (e *BatchError) ErrorKind() string { return "invalid" }

func (e *BatchError) Error() string {
	if e.Text < 0 {
		return "encoder: " + e.Reason
	}
	return fmt.Sprintf("encoder: text %d: %s", e.Text, e.Reason)
}

// check looks at everything that can be wrong with a batch, before anything is launched.
func (m *Model) check(b *Batch) error {
	whole := func(format string, args ...any) error { return &BatchError{-1, fmt.Sprintf(format, args...)} }
	if len(b.Starts) == 0 || b.Starts[0] != 0 || b.Starts[len(b.Starts)-1] != len(b.IDs) {
		return whole("starts %v do not go from 0 to the number of tokens, %d", ends(b.Starts), len(b.IDs))
	}
	for _, s := range []struct {
		name string
		ids  []int32
	}{{"type ids", b.TypeIDs}, {"positions", b.Positions}, {"mask", b.Mask}} {
		if s.ids != nil && len(s.ids) != len(b.IDs) {
			return whole("%d %s for %d tokens", len(s.ids), s.name, len(b.IDs))
		}
	}
	z := &m.sizes
	for i := range b.Len() {
		from, to := b.Starts[i], b.Starts[i+1]
		switch n := to - from; {
		case n < 0 || to > len(b.IDs):
			return &BatchError{i, fmt.Sprintf("starts at %d and ends at %d", from, to)}
		case n == 0:
			return &BatchError{i, "has no tokens"}
		case b.Positions == nil && n > z.MaxTokens:
			return &BatchError{i, fmt.Sprintf("%d tokens, the model takes %d (%s)", n, z.MaxTokens, z.maxKey())}
		}
		for j := from; j < to; j++ {
			if err := inside(i, "token id", b.IDs[j], "vocab_size", z.Vocab); err != nil {
				return err
			}
			if b.TypeIDs != nil {
				if err := inside(i, "type id", b.TypeIDs[j], "type_vocab_size", max(z.Types, 1)); err != nil {
					return err
				}
			}
			if b.Positions != nil {
				if err := inside(i, "position", b.Positions[j], "max_position_embeddings", z.Positions); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func inside(text int, name string, id int32, key string, limit int) error {
	if id < 0 || int(id) >= limit {
		return &BatchError{text, fmt.Sprintf("%s %d, %s is %d", name, id, key, limit)}
	}
	return nil
}

// ends is a slice short enough to print.
func ends(s []int) []int {
	if len(s) > 2 {
		return []int{s[0], s[len(s)-1]}
	}
	return s
}

package batch

import "fmt"

// Error is what went wrong with one batch. The cause is usually a [*worker.Error].
type Error struct {
	Batch int // counted from 0
	First int // the index of its first row
	Rows  int
	Err   error
}

func (e *Error) Error() string {
	return fmt.Sprintf("batch %d (rows %d to %d): %v", e.Batch, e.First, e.First+e.Rows-1, e.Err)
}

// Unwrap is Err.
func (e *Error) Unwrap() error { return e.Err }

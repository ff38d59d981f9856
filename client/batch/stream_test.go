package batch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/client/worker"
)

func TestStream(t *testing.T) {
	eachMode(t, func(t *testing.T, m worker.Mode) {
		rows := dataset(503)
		var outs []rowOut
		batches := 0
		for b, err := range Stream(t.Context(), slices.Values(rows), def, args{Scale: 2}, Options{Size: 25, Workers: 3, Mode: m}) {
			if err != nil {
				t.Fatal(err)
			}
			if want := min(25, 503-batches*25); len(b) != want {
				t.Errorf("batch %d has %d rows, want %d", batches, len(b), want)
			}
			batches++
			outs = append(outs, b...)
		}
		checkRows(t, rows, outs, 2)
	})
}

// The source is read no further than the batches in flight, and not at all after a break.
func TestStreamBreak(t *testing.T) {
	eachMode(t, func(t *testing.T, m worker.Mode) {
		read, yielded := 0, 0
		endless := func(yield func(row) bool) {
			for ; ; read++ {
				if !yield(row{ID: read}) {
					return
				}
			}
		}
		for b, err := range Stream(t.Context(), endless, def, args{Scale: 1}, Options{Size: 5, Workers: 2, Mode: m}) {
			if err != nil {
				t.Fatal(err)
			}
			if b[0].ID != yielded*5 {
				t.Errorf("batch %d starts with row %d", yielded, b[0].ID)
			}
			yielded++
			if ahead := read + 1 - (yielded-1)*5; ahead > 2*2*5 {
				t.Errorf("%d rows were read ahead with 4 batches of 5 in flight", ahead)
			}
			if yielded == 10 {
				break
			}
		}
	})
}

func TestStreamError(t *testing.T) {
	eachMode(t, func(t *testing.T, m worker.Mode) {
		rows := dataset(100)
		rows[55].ID = bad
		n := 0
		var last error
		for _, err := range Stream(t.Context(), slices.Values(rows), def, args{Scale: 1}, Options{Size: 10, Workers: 2, Mode: m}) {
			if last != nil {
				t.Error("something came after the error")
			}
			if last = err; err == nil {
				n++
			}
		}
		var e *Error
		if n != 5 || !errors.As(last, &e) || e.Batch != 5 || !strings.Contains(last.Error(), "bad row") {
			t.Errorf("%d batches, then %v", n, last)
		}
	})
}

func TestStreamCancel(t *testing.T) {
	eachMode(t, func(t *testing.T, m worker.Mode) {
		dir := t.TempDir()
		rows := make(chan row)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			rows <- row{ID: blocked}
			wait(func() bool { _, err := os.Stat(filepath.Join(dir, "blocked")); return err == nil })
			cancel() // the channel stays open
		}()
		var last error
		for _, err := range Stream(ctx, Chan(ctx, rows), def, args{1, dir}, Options{Size: 1, Workers: 2, Mode: m}) {
			last = err
		}
		if !errors.Is(last, context.Canceled) {
			t.Errorf("error %v", last)
		}
	})
}

func TestStreamStart(t *testing.T) {
	for _, tt := range []struct {
		name string
		a    args
		o    Options
		text string
	}{
		{"options", args{Scale: 1}, Options{}, "Size is 0"},
		{"constructor", args{}, Options{Size: 1, Workers: 2}, "Scale is 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clean(t)
			n := 0
			for _, err := range Stream(t.Context(), slices.Values(dataset(3)), def, tt.a, tt.o) {
				if n++; err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %v, want %q", err, tt.text)
				}
			}
			if n != 1 {
				t.Errorf("%d yields, want 1", n)
			}
		})
	}
}

func TestStreamPool(t *testing.T) {
	clean(t)
	pool, err := worker.Start(t.Context(), def, args{Scale: 1}, worker.Options{Workers: 2, Mode: worker.Goroutines})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	rows := dataset(20)
	seq := StreamPool(t.Context(), slices.Values(rows), pool, Options{Size: 3})
	for range 2 { // each iteration begins anew
		var outs []rowOut
		for b, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			outs = append(outs, b...)
		}
		checkRows(t, rows, outs, 1)
	}
}

// A consumer that panics takes no worker with it into the afterlife.
func TestStreamPanic(t *testing.T) {
	clean(t)
	defer func() {
		if v := recover(); v != "enough" {
			t.Errorf("recovered %v", v)
		}
	}()
	for range Stream(t.Context(), slices.Values(dataset(20)), def, args{Scale: 1}, Options{Size: 3, Workers: 2}) {
		panic("enough")
	}
}

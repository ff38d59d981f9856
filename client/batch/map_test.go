package batch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/client/worker"
)

func TestMap(t *testing.T) {
	eachMode(t, func(t *testing.T, m worker.Mode) {
		for _, tt := range []struct {
			name                             string
			rows, size, workers, batches, by int
		}{
			{"the original", 500, 25, 3, 20, 3},
			{"short last", 103, 10, 3, 11, 3},
			{"one batch", 7, 25, 3, 1, 1},
			{"rows one by one", 9, 1, 2, 9, 2},
		} {
			t.Run(tt.name, func(t *testing.T) {
				rows := dataset(tt.rows)
				res, err := Map(t.Context(), rows, def, args{Scale: 2}, Options{Size: tt.size, Workers: tt.workers, Mode: m})
				if err != nil {
					t.Fatal(err)
				}
				checkRows(t, rows, res.Rows, 2)
				if res.Batches != tt.batches || len(res.Workers) != tt.by || res.Wall <= res.Start || res.Start <= 0 {
					t.Errorf("%d batches by %v in %v (%v to start)", res.Batches, res.Workers, res.Wall, res.Start)
				}
				nb, nr := 0, 0
				for i, w := range res.Workers {
					nb, nr = nb+w.Batches, nr+w.Rows
					if w.Worker != i || w.Batches == 0 {
						t.Errorf("worker %d had no batch: %v", i, res.Workers)
					}
				}
				if nb != tt.batches || nr != tt.rows {
					t.Errorf("shares %v add up to %d batches, %d rows", res.Workers, nb, nr)
				}
				pids := map[int]bool{}
				for _, o := range res.Rows {
					pids[o.PID] = true
				}
				if m == worker.Processes && (len(pids) != tt.by || pids[os.Getpid()]) {
					t.Errorf("rows were mapped by pids %v, want %d workers", pids, tt.by)
				}
			})
		}
	})
}

func TestMapNoRows(t *testing.T) {
	res, err := Map(t.Context(), nil, def, args{}, Options{Size: 1, Workers: 1})
	if err != nil || len(res.Rows) != 0 || res.Batches != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestMapErrors(t *testing.T) {
	eachMode(t, func(t *testing.T, m worker.Mode) {
		for _, tt := range []struct {
			name string
			id   int
			text string
		}{
			{"actor", bad, "batch 7 (rows 70 to 79): worker "},
			{"length", lost, "returned 9 rows for 10"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				rows := dataset(100)
				rows[75].ID = tt.id
				_, err := Map(t.Context(), rows, def, args{Scale: 1}, Options{Size: 10, Workers: 2, Mode: m})
				var e *Error
				if !errors.As(err, &e) || e.Batch != 7 || e.First != 70 || e.Rows != 10 || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %v, want batch 7 and %q", err, tt.text)
				}
				var w *worker.Error
				if errors.As(err, &w) != (tt.id == bad) {
					t.Errorf("error %v", err)
				}
			})
		}
		t.Run("start", func(t *testing.T) {
			_, err := Map(t.Context(), dataset(10), def, args{}, Options{Size: 10, Workers: 2, Mode: m})
			if err == nil || !strings.Contains(err.Error(), "start: Scale is 0") {
				t.Errorf("error %v", err)
			}
		})
	})
}

func TestMapCancel(t *testing.T) {
	eachMode(t, func(t *testing.T, m worker.Mode) {
		dir := t.TempDir()
		rows := dataset(100)
		rows[42].ID = blocked
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			wait(func() bool { _, err := os.Stat(filepath.Join(dir, "blocked")); return err == nil })
			cancel()
		}()
		if _, err := Map(ctx, rows, def, args{1, dir}, Options{Size: 10, Workers: 2, Mode: m}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestMapOutlivesAWorker(t *testing.T) {
	clean(t)
	rows := dataset(100)
	rows[31].ID = deadly
	res, err := Map(t.Context(), rows, def, args{1, t.TempDir()}, Options{Size: 10, Workers: 3})
	if err != nil {
		t.Fatal(err)
	}
	res.Rows[31].ID = 31
	rows[31].ID = 31
	checkRows(t, rows, res.Rows, 1)

	rows[31].ID = deadly
	_, err = Map(t.Context(), rows, def, args{1, t.TempDir()}, Options{Size: 10, Workers: 3, Retries: -1})
	var e *Error
	var exit *worker.Exit
	if !errors.As(err, &e) || e.Batch != 3 || !errors.As(err, &exit) || exit.Code != 5 {
		t.Errorf("without retries: %v", err)
	}
}

func TestMapPool(t *testing.T) {
	clean(t)
	pool, err := worker.Start(t.Context(), def, args{Scale: 3}, worker.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	rows := dataset(60)
	for range 2 {
		res, err := MapPool(t.Context(), rows, pool, Options{Size: 7})
		if err != nil {
			t.Fatal(err)
		}
		checkRows(t, rows, res.Rows, 3)
	}
	for _, w := range pool.Workers() {
		if w.Restarts != 0 || w.Calls == 0 {
			t.Errorf("%+v", w)
		}
	}
	if _, err := MapPool(t.Context(), rows, pool, Options{}); err == nil || !strings.Contains(err.Error(), "Size is 0") {
		t.Errorf("error %v", err)
	}
}

func TestValidate(t *testing.T) {
	_, err := Map(t.Context(), dataset(1), def, args{}, Options{InFlight: -1, Mode: 7, Grace: -1, Env: []string{"x"}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, s := range []string{"Size is 0", "Workers is 0", "InFlight is -1", "mode(7)", "Grace is -1ns", `Env has "x"`} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q is not in %v", s, err)
		}
	}
}

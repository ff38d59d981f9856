package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// progress tells how far a put is. It is safe for concurrent use.
type progress struct {
	w     io.Writer
	every time.Duration
	line  bool // rewrite one line, instead of writing many

	mu    sync.Mutex
	stage string    // guarded by mu
	begun time.Time // guarded by mu; of the stage
	last  time.Time // guarded by mu; when something was written
	done  int       // guarded by mu
	total int       // guarded by mu
}

// newProgress makes the progress of a mode: auto (a line on a terminal, else nothing), plain (lines), none. nil is none.
func newProgress(mode string, w io.Writer) (*progress, error) {
	_, tty := terminal(w)
	switch {
	case mode == "none", mode == "auto" && !tty:
		return nil, nil
	case mode == "auto":
		return &progress{w: w, every: 100 * time.Millisecond, line: true}, nil
	case mode == "plain":
		return &progress{w: w, every: 2 * time.Second}, nil
	}
	return nil, zcerr.New(zcerr.Invalid, "--progress %s is none of auto, plain, none", mode).WithHint("zcctl put --help")
}

// update takes what client.PutOptions.Progress is told.
func (p *progress) update(stage string, done, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if stage != p.stage {
		p.endStage()
		p.stage, p.begun, p.last, p.done = stage, now, now, 0
	}
	p.done, p.total = max(p.done, done), total // calls of several goroutines overtake each other
	if now.Sub(p.last) >= p.every {
		p.last = now
		p.write()
	}
}

// endStage writes where the stage came to. Called with mu.
func (p *progress) endStage() {
	if p.stage != "" {
		p.write()
		if p.line {
			fmt.Fprint(p.w, "\r\x1b[K")
		}
	}
	p.stage = ""
}

func (p *progress) write() {
	percent := 100
	if p.total > 0 {
		percent = int(100 * float64(p.done) / float64(p.total))
	}
	s := fmt.Sprintf("%s %s of %s  %d %%  %s", p.stage, units.Bytes(p.done), units.Bytes(p.total), percent, rate(p.done, time.Since(p.begun)))
	if p.line {
		fmt.Fprintf(p.w, "\r%s\x1b[K", s)
		return
	}
	fmt.Fprintln(p.w, s)
}

// close ends the last stage. A nil progress has none.
func (p *progress) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endStage()
}

// rate is bytes a second for people.
func rate[T ~int | ~uint64](n T, d time.Duration) string {
	return units.Bytes(uint64(perSecond(n, d))) + "/s"
}

func perSecond[T ~int | ~uint64](n T, d time.Duration) float64 {
	return float64(n) / max(d.Seconds(), 1e-6)
}

package text_test

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testrace"
)

// One open pipeline serves many goroutines: what each gets is what it would get alone, to the last bit, and one that gives up
// disturbs no other.
func TestManyCallersTogether(t *testing.T) {
	dir := golden.Tree(t, "intents")
	p := open(t, "intents", dir)
	var texts []string
	for _, r := range lines[struct{ Text string }](t, dir+"/golden.jsonl") {
		texts = append(texts, r.Text)
	}
	want, err := p.Classify(ctx, texts)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for caller := range 16 {
		wg.Go(func() {
			for n := range 12 {
				from := (caller*37 + n*11) % 250
				some := texts[from : from+1+(caller+n)%9]
				if caller%4 == 3 { // gives up, sooner or later
					c, cancel := context.WithTimeout(ctx, time.Duration(n*50)*time.Microsecond)
					if got, err := p.Classify(c, some); err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%v, %v", got, err)
					}
					cancel()
					continue
				}
				got, err := p.Classify(ctx, some)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range got {
					for k, s := range got[i].Scores {
						if math.Float32bits(s) != math.Float32bits(want[from+i].Scores[k]) {
							t.Errorf("caller %d, text %d: score %v, alone %v", caller, from+i, s, want[from+i].Scores[k])
						}
					}
				}
			}
		})
	}
	wg.Wait()
}

// Ten thousand texts in one call need no more memory than a few at a time do, beside their answers.
func TestManyTextsLittleMemory(t *testing.T) {
	if testing.Short() || testrace.Enabled {
		t.Skip("takes seconds")
	}
	dir := golden.Tree(t, "intents")
	p := open(t, "intents", dir)
	texts := make([]string, 10_000)
	for i := range texts {
		texts[i] = "please remove the old model and tell me what the time is, and then remove the new model too"
	}
	if _, err := p.Classify(ctx, texts[:1000]); err != nil {
		t.Fatal(err)
	}
	stop, done, most := make(chan struct{}), make(chan struct{}), uint64(0)
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			}
		}
	}()
	got, err := p.Classify(ctx, texts)
	close(stop)
	<-done
	if err != nil || len(got) != len(texts) {
		t.Fatalf("%d answers, %v", len(got), err)
	}
	grown := (int64(most) - int64(before.HeapInuse)) >> 20
	tokens := got[0].Tokens * len(texts)
	t.Logf("%d tokens, heap grown by %d MiB at most", tokens, grown)
	if grown > 96 {
		t.Errorf("the heap grew by %d MiB", grown)
	}
}

package fault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// The daemon is killed again and again while clients put, replace, remove and attach, and while workers, which are processes,
// compute on what they have mapped. Nothing that was acknowledged is lost, nobody ever gets a version that is not whole, and
// no worker notices.
func TestCase21DaemonKilledUnderLoad(t *testing.T) {
	kills := size(8, 200, 1_000)
	socket, dir, own := place(t)
	p := testdaemon.StartProcess(t, socket, dir, testdaemon.EnvControl+"=1")
	s, hangUp := remote(t, socket)
	storetest.Put(t, s, "model", storetest.Big()...)
	hangUp()
	var workers []*process
	for range 4 {
		w, err := spawn("compute", socket, "model")
		if err != nil {
			t.Fatal(err)
		}
		workers = append(workers, w)
	}
	l := &load{socket: socket, stop: make(chan struct{})}
	for i := range 3 {
		l.wg.Add(1)
		go l.run(fmt.Sprintf("load%d", i), uint64(i))
	}
	var starts []time.Duration
	for n := range kills {
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		p.Kill()
		begin := time.Now()
		p = testdaemon.StartProcess(t, socket, dir, testdaemon.EnvControl+"=1")
		starts = append(starts, time.Since(begin))
		if n%20 != 19 && n != kills-1 {
			continue
		}
		s, hangUp := remote(t, socket)
		registered(t, s, len(workers))
		hangUp()
	}
	close(l.stop)
	l.wg.Wait()
	for _, err := range l.errs {
		t.Error(err)
	}
	// The last state of each loader is exactly what it was told, or what it was not told about whole.
	s, hangUp = remote(t, socket)
	for _, r := range l.last {
		if err := r.check(s); err != nil {
			t.Error(err)
		}
	}
	storetest.Settled(t, s)
	registered(t, s, len(workers))
	rounds := 0
	for _, w := range workers {
		word := w.end(t)
		n := 0
		if _, err := fmt.Sscanf(word, "rounds %d", &n); err != nil || n == 0 {
			t.Errorf("a worker ended with %q", word)
		}
		rounds += n
	}
	slowest := time.Duration(0)
	for _, d := range starts {
		slowest = max(slowest, d)
	}
	t.Logf("%d kills under load: %d puts and removals acknowledged, %d without an answer, %d attaches, all whole; %d rounds in %d workers; slowest start %v",
		kills, l.acked.Load(), l.maybe.Load(), l.attached.Load(), rounds, len(workers), slowest)
	if l.acked.Load() == 0 || l.attached.Load() == 0 {
		t.Error("there was no load")
	}
	d := &storetest.Daemon{Socket: socket, PID: p.PID, Goroutines: func() int { return testdaemon.Goroutines(socket) }}
	d.Ack("model:v1", storetest.Digest(t, storetest.Big()...))
	d.Invariants(t)
	emptyStore(t, s)
	hangUp()
	if own {
		p.Kill()
		if n, err := unnamed(dir); err != nil || n != 0 {
			t.Errorf("%d bytes without a name are left, %v", n, err)
		}
	}
}

// registered waits until every worker has its lease at the daemon that runs now: within the five seconds of its promise.
func registered(t *testing.T, s storetest.Store, workers int) {
	t.Helper()
	begin := time.Now()
	for {
		hs, err := s.Holders("model")
		if err == nil && len(hs) == workers {
			return
		}
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("after 5 s, %d of %d workers have their lease anew, %v", len(hs), workers, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// load is a few clients that put, replace, remove and attach.
type load struct {
	socket string
	stop   chan struct{}
	wg     sync.WaitGroup

	acked, maybe, attached atomic.Int64

	mu   sync.Mutex
	errs []error   // guarded by mu
	last []*record // guarded by mu
}

// record is what one loader knows of its model: name:t points at acked (0: at nothing), or at one of the seeds that were put
// or removed (0) since then without an answer.
type record struct {
	name  string
	acked uint64
	maybe []uint64
}

func (r *record) rows(seed uint64) []storetest.Row {
	return []storetest.Row{{Name: "shared", Size: 70_000, Seed: 1}, {Name: r.name, Size: 66_000, Seed: seed}}
}

// check compares what the store has with what it may have.
func (r *record) check(s storetest.Store) error {
	h, err := s.Attach(r.name + ":t")
	allowed := append([]uint64{r.acked}, r.maybe...)
	for _, seed := range allowed {
		if seed == 0 {
			if errors.Is(err, zcerr.NotFound) {
				return nil
			}
			continue
		}
		if err == nil && string(h.Tensors[r.name]) == string(storetest.Row{Name: r.name, Size: 66_000, Seed: seed}.Bytes()) {
			bad := h.Broken()
			h.Release()
			if bad != "" {
				return fmt.Errorf("%s: tensor %s is not what was put", r.name, bad)
			}
			return nil
		}
	}
	if err == nil {
		h.Release()
		err = errors.New("it has other bytes")
	}
	return fmt.Errorf("%s is none of what it may be, %d or %d: %w", r.name, r.acked, r.maybe, err)
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, err)
}

func (l *load) run(name string, seed uint64) {
	defer l.wg.Done()
	s, hangUp, err := dial(l.socket)
	if err != nil {
		l.fail(err)
		return
	}
	defer hangUp()
	r := &record{name: name}
	l.mu.Lock()
	l.last = append(l.last, r)
	l.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 7))
	next := seed * 1_000_000
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		switch rng.IntN(6) {
		case 0:
			_, err := s.Remove(name+":t", false)
			l.settle(r, 0, err, zcerr.NotFound)
		case 1, 2, 3:
			next++
			_, err := s.Put(name+":t", true, storetest.Draft(r.rows(next)...))
			l.settle(r, next, err)
		default:
			if err := r.check(s); err == nil {
				l.attached.Add(1)
			} else if !gone(err) {
				l.fail(err)
			}
		}
	}
}

// gone reports that a call got no answer because the daemon ended.
func gone(err error) bool {
	return errors.Is(err, zcerr.Unavailable) || strings.Contains(err.Error(), "EOF")
}

// unsent reports that a call never reached a daemon: nobody was there to take the connection.
func unsent(err error) bool {
	return errors.Is(err, zcerr.Unavailable) && (strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "no such file"))
}

// settle notes the outcome of a change to seed.
func (l *load) settle(r *record, seed uint64, err error, fine ...zcerr.Kind) {
	for _, k := range fine {
		if errors.Is(err, k) {
			err = nil
		}
	}
	switch {
	case err == nil:
		l.acked.Add(1)
		r.acked, r.maybe = seed, nil
	case unsent(err):
		time.Sleep(time.Millisecond)
	case gone(err):
		l.maybe.Add(1)
		r.maybe = append(r.maybe, seed)
	default:
		l.fail(fmt.Errorf("%s: %w", r.name, err))
	}
}

// 64 puts of one explicit tag with different bytes, all at once: one wins, and every other one is told that the tag is taken.
func TestCase46SixtyFourPutsOfOneTag(t *testing.T) {
	const puts = 64
	drafts := func(i int) storetest.Row { return storetest.Row{Name: "x", Size: 70_000, Seed: uint64(1 + i)} }
	race := func(t *testing.T, s storetest.Store, name string) {
		t.Helper()
		begin := make(chan struct{})
		errs := make([]error, puts)
		var wg sync.WaitGroup
		for i := range puts {
			d := storetest.Draft(drafts(i))
			wg.Add(1)
			go func() {
				defer wg.Done()
				<-begin
				for {
					if _, errs[i] = s.Put(name+":prod", false, d); !errors.Is(errs[i], zcerr.Limit) {
						return
					}
					d = storetest.Draft(drafts(i))
				}
			}()
		}
		close(begin)
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				t.Errorf("put %d and put %d have both won", winner, i)
			case !errors.Is(err, zcerr.Conflict) || zcerr.HintOf(err) == "":
				t.Errorf("put %d: %v", i, err)
			}
		}
		if winner < 0 {
			t.Fatal("nobody won")
		}
		storetest.Whole(t, s, name+":prod", drafts(winner))
		storetest.Settled(t, s)
		if _, err := s.Remove(name, true); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("in the process", func(t *testing.T) {
		st, err := store.Open(store.Options{Dir: storetest.Dir(t), MaxPuts: puts})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		for n := range size(10, 50, 1_000) {
			race(t, storetest.Local{Store: st}, fmt.Sprintf("m%d", n))
		}
	})
	t.Run("over the socket", func(t *testing.T) {
		socket, dir := testdaemon.Place(t)
		testdaemon.Start(t, socket, dir)
		s, hangUp := remote(t, socket)
		defer hangUp()
		for n := range size(2, 10, 100) {
			race(t, s, fmt.Sprintf("m%d", n))
		}
	})
}

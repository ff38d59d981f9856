package fault

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// What the store is, as a sequential model of one name: its tags with what they point at, and the number of the next automatic
// tag. A history of concurrent calls must be explained by some order of them that this model allows.

type verb int

const (
	putNext verb = iota // to the bare name: the next version
	putTag
	get
	retag
	untag
	removeAll
	list
)

func (v verb) String() string {
	return [...]string{"put", "put tag", "get", "retag", "rm tag", "rm", "ls"}[v]
}

type call struct {
	verb    verb
	name    string
	tag     string
	source  string // of retag
	replace bool
	digest  int // of the version that is put: 1..
}

type outcome int

const (
	done outcome = iota
	notFound
	conflict
	unknown // no answer came: it was done, or not, or will be
)

type reply struct {
	outcome outcome
	digest  int
	tags    string // of list
}

// state is immutable.
type state struct {
	next int // 0: there is no such name
	tags map[string]int
}

func (s state) clone() state { return state{s.next, maps.Clone(s.tags)} }

func (s state) String() string {
	var out []string
	for t, d := range s.tags {
		out = append(out, fmt.Sprintf("%s=%d", t, d))
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

// step is what a call does to a name, and what it answers.
func (s state) step(c call) (state, reply) {
	if s.next == 0 && c.verb != putNext && c.verb != putTag {
		return s, reply{outcome: notFound}
	}
	n := s.clone()
	if n.next == 0 {
		n = state{next: 1, tags: map[string]int{}}
	}
	switch c.verb {
	case putNext:
		auto := func(t string) bool { return len(t) > 1 && t[0] == 'v' && t[1] >= '1' && t[1] <= '9' }
		n.tags["latest"] = c.digest
		has := false
		for t, d := range n.tags {
			has = has || auto(t) && d == c.digest
		}
		if !has {
			for n.tags[fmt.Sprintf("v%d", n.next)] != 0 {
				n.next++
			}
			n.tags[fmt.Sprintf("v%d", n.next)] = c.digest
			n.next++
		}
		return n, reply{}
	case putTag:
		if old := n.tags[c.tag]; old != 0 && old != c.digest && !c.replace {
			return s, reply{outcome: conflict}
		}
		n.tags[c.tag] = c.digest
		return n, reply{}
	case get:
		if d := s.tags[c.tag]; d != 0 {
			return s, reply{digest: d}
		}
		return s, reply{outcome: notFound}
	case retag:
		d := s.tags[c.source]
		if d == 0 {
			return s, reply{outcome: notFound}
		}
		if old := s.tags[c.tag]; old != 0 && old != d && !c.replace {
			return s, reply{outcome: conflict}
		}
		n.tags[c.tag] = d
		return n, reply{}
	case untag:
		if s.tags[c.tag] == 0 {
			return s, reply{outcome: notFound}
		}
		if delete(n.tags, c.tag); len(n.tags) == 0 {
			return state{}, reply{}
		}
		return n, reply{}
	case removeAll:
		return state{}, reply{}
	case list:
		return s, reply{tags: s.String()}
	}
	panic("no such call")
}

var sequential = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byName := map[string][]porcupine.Operation{}
		for _, o := range history {
			name := o.Input.(call).name
			byName[name] = append(byName[name], o)
		}
		return slices.Collect(maps.Values(byName))
	},
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) {
		next, want := s.(state).step(in.(call))
		got := out.(reply)
		return got.outcome == unknown || got == want, next
	},
	Equal: func(a, b any) bool {
		x, y := a.(state), b.(state)
		return x.next == y.next && maps.Equal(x.tags, y.tags)
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
	DescribeState:     func(s any) string { return s.(state).String() },
}

// forever is the end of a call that got no answer: it may be done at any time from its begin.
const forever = int64(1) << 62

// recorder makes the calls of some clients and writes down what they were told.
type recorder struct {
	begin time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation // guarded by mu
	errs  []error               // guarded by mu
	index map[manifest.Digest]int
	rows  map[int]storetest.Row
}

const variants = 4

func newRecorder(t testing.TB) *recorder {
	r := &recorder{begin: time.Now(), index: map[manifest.Digest]int{}, rows: map[int]storetest.Row{}}
	for i := 1; i <= variants; i++ {
		r.rows[i] = storetest.Row{Name: "x", Size: 66_000, Seed: uint64(i)}
		r.index[storetest.Digest(t, r.rows[i])] = i
	}
	return r
}

// clients runs random calls from n clients at once, until each has made so many.
func (r *recorder) clients(n, calls int, seed uint64, store func(i int) (storetest.Store, func(), error)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, hangUp, err := store(i)
			if err != nil {
				r.fail(err)
				return
			}
			defer hangUp()
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for range calls {
				r.one(i, s, randomCall(rng))
			}
		}()
	}
	wg.Wait()
}

func randomCall(rng *rand.Rand) call {
	tags := []string{"prod", "latest", "v1", "v2"}
	c := call{name: []string{"m", "n"}[rng.IntN(2)], tag: tags[rng.IntN(len(tags))], digest: 1 + rng.IntN(variants), replace: rng.IntN(2) == 0}
	switch k := rng.IntN(20); {
	case k < 3:
		c.verb = putNext
	case k < 6:
		c.verb = putTag
	case k < 13:
		c.verb = get
	case k < 15:
		c.verb, c.source = retag, tags[rng.IntN(len(tags))]
	case k < 17:
		c.verb = untag
	case k < 18:
		c.verb = removeAll
	default:
		c.verb = list
	}
	return c
}

func (r *recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *recorder) one(client int, s storetest.Store, c call) {
	from := time.Since(r.begin).Nanoseconds()
	var out reply
	for {
		var err error
		out, err = r.do(s, c)
		switch {
		case err == nil:
		case unsent(err): // nothing was done, and nothing is there to do it
			time.Sleep(time.Millisecond)
			continue
		case errors.Is(err, zcerr.Limit):
			continue
		case errors.Is(err, zcerr.Conflict) && strings.Contains(err.Error(), "removed during"): // it says that nothing was done
			continue
		case errors.Is(err, zcerr.NotFound):
			out = reply{outcome: notFound}
		case errors.Is(err, zcerr.Conflict):
			out = reply{outcome: conflict}
		case gone(err):
			out = reply{outcome: unknown}
		default:
			r.fail(fmt.Errorf("%+v: %w", c, err))
			return
		}
		break
	}
	to := time.Since(r.begin).Nanoseconds()
	if out.outcome == unknown {
		if c.verb == get || c.verb == list { // told nothing, and changed nothing
			return
		}
		to = forever
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: c, Call: from, Output: out, Return: to})
}

func (r *recorder) do(s storetest.Store, c call) (out reply, err error) {
	target := c.name + ":" + c.tag
	switch c.verb {
	case putNext:
		_, err = s.Put(c.name, false, storetest.Draft(r.rows[c.digest]))
	case putTag:
		_, err = s.Put(target, c.replace, storetest.Draft(r.rows[c.digest]))
	case get:
		h, err := s.Attach(target)
		if err != nil {
			return out, err
		}
		defer h.Release()
		if bad := h.Broken(); bad != "" {
			return out, fmt.Errorf("tensor %s of %s is not what was put", bad, target)
		}
		out.digest = r.index[h.Digest]
	case retag:
		_, _, err = s.Tag(c.name+":"+c.source, target, c.replace)
	case untag:
		_, err = s.Remove(target, false)
	case removeAll:
		_, err = s.Remove(c.name, true)
	case list:
		vs, err := s.List(c.name, false)
		if err != nil {
			return out, err
		}
		st := state{tags: map[string]int{}}
		for _, v := range vs {
			for _, tag := range v.Tags {
				st.tags[tag] = r.index[v.Digest]
			}
		}
		out.tags = st.String()
	}
	return out, err
}

// check finds an order of the calls that explains every answer.
func (r *recorder) check(limit time.Duration) porcupine.CheckResult {
	res, _ := porcupine.CheckOperationsVerbose(sequential, r.ops, limit)
	return res
}

// Several clients put, get, retag, remove and list the same two names while the daemon is killed. Each history must be
// linearizable; a call without an answer may have been done, or not.
func TestCase47HistoriesAreLinearizable(t *testing.T) {
	histories := size(4, 200, 2_000)
	total, unanswered, kills := 0, 0, 0
	for h := range histories {
		ops, lost, k := history(t, uint64(h))
		total, unanswered, kills = total+ops, unanswered+lost, kills+k
		if t.Failed() {
			t.Fatalf("history %d of %d", h+1, histories)
		}
	}
	t.Logf("%d histories of %d calls in the mean, %d without an answer, %d kills: all linearizable", histories, total/histories, unanswered, kills)
	if unanswered == 0 || kills == 0 {
		t.Error("no kill met a call")
	}
}

func history(t *testing.T, seed uint64) (ops, unanswered, kills int) {
	t.Helper()
	const clients, calls = 5, 60
	socket, dir := testdaemon.Place(t)
	p := testdaemon.StartProcess(t, socket, dir)
	r := newRecorder(t)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		r.clients(clients, calls, seed, func(int) (storetest.Store, func(), error) { return dial(socket) })
	}()
	rng := rand.New(rand.NewPCG(seed, 99))
killing:
	for {
		select {
		case <-finished:
			break killing
		case <-time.After(time.Duration(15+rng.IntN(60)) * time.Millisecond):
			if kills < 4 {
				p.Kill()
				p = testdaemon.StartProcess(t, socket, dir)
				kills++
			}
		}
	}
	for _, err := range r.errs {
		t.Error(err)
	}
	switch r.check(30 * time.Second) {
	case porcupine.Illegal:
		_, info := porcupine.CheckOperationsVerbose(sequential, r.ops, 0)
		file := fmt.Sprintf("%s/zcstore-history-%d.html", os.TempDir(), seed) // stays, to be looked at
		t.Logf("picture: %s", file)
		if err := porcupine.VisualizePath(sequential, info, file); err != nil {
			t.Log(err)
		}
		for _, o := range r.ops {
			t.Logf("client %d, %d to %d: %+v -> %+v", o.ClientId, o.Call, o.Return, o.Input, o.Output)
		}
		t.Error("this history has no order that explains it")
	case porcupine.Unknown:
		t.Log("no answer within 30 s")
		t.Error("the check took too long")
	}
	for _, o := range r.ops {
		if o.Output.(reply).outcome == unknown {
			unanswered++
		}
	}
	s, hangUp := remote(t, socket)
	storetest.Settled(t, s)
	emptyStore(t, s)
	hangUp()
	p.Kill()
	return len(r.ops), unanswered, kills
}

// A store with a bug that tests of one call after the other would not see must be found out by its histories.
func TestCase47FindsPlantedBugs(t *testing.T) {
	for _, bug := range []string{"none", "an acknowledged retag is lost", "a get gives an old version", "rm comes back"} {
		t.Run(bug, func(t *testing.T) {
			// One history need not show it: whoever else changes the tag next may hide what was lost.
			const histories = 20
			for seed := range uint64(histories) {
				got := brokenHistory(t, bug, seed)
				switch {
				case bug == "none" && got != porcupine.Ok:
					t.Fatalf("a store without a bug: the check says %v", got)
				case bug == "none" && seed == 2, bug != "none" && got == porcupine.Illegal:
					return
				}
			}
			t.Errorf("%d histories did not show it", histories)
		})
	}
}

func brokenHistory(t *testing.T, bug string, seed uint64) porcupine.CheckResult {
	t.Helper()
	st, err := store.Open(store.Options{Dir: storetest.Dir(t), MaxPuts: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r := newRecorder(t)
	r.clients(4, 100, seed, func(int) (storetest.Store, func(), error) {
		return &broken{Store: storetest.Local{Store: st}, bug: bug}, func() {}, nil
	})
	for _, err := range r.errs {
		t.Error(err)
	}
	return r.check(30 * time.Second)
}

// broken is a store with a planted bug, which shows once in a while.
type broken struct {
	storetest.Store
	bug  string
	mu   sync.Mutex
	n    int
	last *storetest.Held
}

func (b *broken) now() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	return b.n%5 == 0
}

func (b *broken) Tag(source, target string, replace bool) (d, p manifest.Digest, err error) {
	if b.bug == "an acknowledged retag is lost" && b.now() {
		if _, err := b.Show(source); err == nil && replace {
			return d, p, nil
		}
	}
	return b.Store.Tag(source, target, replace)
}

func (b *broken) Attach(ref string) (*storetest.Held, error) {
	h, err := b.Store.Attach(ref)
	if b.bug != "a get gives an old version" || err != nil {
		return h, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.last
	b.last = h
	if old != nil && b.n%5 == 0 {
		h.Digest = old.Digest
	}
	b.n++
	return h, err
}

func (b *broken) Remove(ref string, all bool) (store.Removed, error) {
	if b.bug == "rm comes back" && b.now() {
		if _, err := b.Show(ref); err == nil {
			return store.Removed{}, nil
		}
	}
	return b.Store.Remove(ref, all)
}

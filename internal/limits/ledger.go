package limits

import (
	"sync"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// strangers is how many connections there may be of users who may not use the daemon: enough to tell each of them so, call by
// call, and too few to take anybody's place.
const strangers = 16

// Ledger counts who has what. What is taken is given back by the function that took it out; twice does nothing. At idle
// every count is zero, and the ledger holds nothing. It is safe for concurrent use.
type Ledger struct {
	l Limits

	mu       sync.Mutex
	users    map[uint32]*account // guarded by mu
	conns    int                 // guarded by mu
	puts     int                 // guarded by mu
	stranger int                 // guarded by mu
}

// account is what one user has. uploads are connections over a limit, one for each open put: the put's bytes need it, and it
// takes one of the reserved descriptors.
type account struct{ conns, uploads, leases, puts, lists int }

// NewLedger makes an empty one. l must be complete.
func NewLedger(l Limits) *Ledger { return &Ledger{l: l, users: map[uint32]*account{}} }

// Limits is what the ledger holds to.
func (g *Ledger) Limits() Limits { return g.l }

// Idle says whether nobody has anything.
func (g *Ledger) Idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.users) == 0 && g.conns == 0 && g.puts == 0 && g.stranger == 0
}

// take counts one more of *all and of the user's own, and gives the function that gives both back. Called with mu held.
func (g *Ledger) take(uid uint32, all *int, own func(*account) *int) (back func()) {
	a := g.account(uid)
	*all++
	*own(a)++
	var once sync.Once
	return func() {
		once.Do(func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			*all--
			*own(a)--
			if *a == (account{}) {
				delete(g.users, uid)
			}
		})
	}
}

func (g *Ledger) account(uid uint32) *account {
	a := g.users[uid]
	if a == nil {
		a = &account{}
		g.users[uid] = a
	}
	return a
}

func (g *Ledger) peek(uid uint32) account {
	if a := g.users[uid]; a != nil {
		return *a
	}
	return account{}
}

// Conn takes a connection of a user who may use the daemon. Errors: Limit.
func (g *Ledger) Conn(uid uint32) (back func(), err error) {
	total, byFiles := g.l.ConnsNow()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch a := g.peek(uid); {
	case a.conns >= g.l.ConnsPerUID:
		return nil, zcerr.New(zcerr.Limit, "uid %d has %d connections, the limit of one user is %d", uid, a.conns, g.l.ConnsPerUID).
			WithHint("close some, or start the daemon with a larger one: zcstored --max-conns-per-uid %d", 2*g.l.ConnsPerUID)
	case g.conns >= total && byFiles:
		return nil, zcerr.New(zcerr.Limit, "the daemon has %d connections, which is all that its limit of open files allows (%d stay reserved); uid %d has %d of them", g.conns, g.l.ReservedFDs, uid, a.conns).
			WithHint("close some, or give the daemon more open files: LimitNOFILE= in its unit, or ulimit -n before it is started: ulimit -n 65536")
	case g.conns >= total:
		return nil, zcerr.New(zcerr.Limit, "the daemon has %d connections, the limit of all users is %d; uid %d has %d of them", g.conns, g.l.Conns, uid, a.conns).
			WithHint("close some, or start the daemon with a larger one: zcstored --max-conns %d", 2*g.l.Conns)
	}
	return g.take(uid, &g.conns, func(a *account) *int { return &a.conns }), nil
}

// Upload takes a connection on the raw channel that Conn has refused, when the user has an open put that may want it for its
// bytes: the number is bounded by the open puts, and the reserve has room for it.
func (g *Ledger) Upload(uid uint32) (back func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a := g.peek(uid); a.uploads >= a.puts {
		return nil, false
	}
	var all int
	return g.take(uid, &all, func(a *account) *int { return &a.uploads }), true
}

// OpenPuts is how many puts are open.
func (g *Ledger) OpenPuts() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.puts
}

// Stranger takes a connection of a user who may not use the daemon, to tell him so on it. It says no when enough of them
// are there.
func (g *Ledger) Stranger() (back func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stranger >= strangers {
		return nil, false
	}
	g.stranger++
	var once sync.Once
	return func() {
		once.Do(func() { g.mu.Lock(); g.stranger--; g.mu.Unlock() })
	}, true
}

// Lease takes a lease. Errors: Limit.
func (g *Ledger) Lease(uid uint32) (back func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a := g.peek(uid); a.leases >= g.l.LeasesPerUID {
		return nil, zcerr.New(zcerr.Limit, "uid %d has %d leases, the limit of one user is %d", uid, a.leases, g.l.LeasesPerUID).
			WithHint("close models that are done with (zcctl ps names who has them), or start the daemon with a larger one: zcstored --max-leases-per-uid %d", 2*g.l.LeasesPerUID)
	}
	var all int // nobody counts all leases
	return g.take(uid, &all, func(a *account) *int { return &a.leases }), nil
}

// List takes a listing. Errors: Limit.
func (g *Ledger) List(uid uint32) (back func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a := g.peek(uid); a.lists >= g.l.ListsPerUID {
		return nil, zcerr.New(zcerr.Limit, "uid %d has %d listings that are not read to their end, the limit of one user is %d", uid, a.lists, g.l.ListsPerUID).
			WithHint("read them, or ask one after the other; or start the daemon with a larger one: zcstored --max-lists-per-uid %d", 2*g.l.ListsPerUID)
	}
	var all int // nobody counts all listings
	return g.take(uid, &all, func(a *account) *int { return &a.lists }), nil
}

// Put takes an open put. It does not wait: a client that has more to put than places knows best which goes first, and a
// queue would hang whoever opens many before he feeds one. Errors: Limit.
func (g *Ledger) Put(uid uint32) (back func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch a := g.peek(uid); {
	case a.puts >= g.l.PutsPerUID:
		return nil, zcerr.New(zcerr.Limit, "%d puts are open of uid %d, the limit of one user is %d", a.puts, uid, g.l.PutsPerUID).
			WithHint("wait for one to end, or start the daemon with a larger one: zcstored --max-puts-per-uid %d", 2*g.l.PutsPerUID)
	case g.puts >= g.l.Puts:
		return nil, zcerr.New(zcerr.Limit, "%d puts are open, the limit of all users is %d; uid %d has %d of them", g.puts, g.l.Puts, uid, a.puts).
			WithHint("wait for one to end, or start the daemon with a larger one: zcstored --max-puts %d", 2*g.l.Puts)
	}
	return g.take(uid, &g.puts, func(a *account) *int { return &a.puts }), nil
}

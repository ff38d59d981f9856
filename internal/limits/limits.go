// Package limits is what one daemon lets its clients have, in one place: the numbers, their flags, their checks, and the
// ledger that counts what each user has.
package limits

import (
	"errors"
	"flag"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Limits of one daemon. A field that is zero has its default, which Standard gives.
type Limits struct {
	Conns         int    // connections of all users
	ConnsPerUID   int    // of one user
	SilentPerUID  int    // connections of one user that have not yet said what they are
	LeasesPerUID  int    // leases of one user
	Puts          int    // open puts of all users
	PutsPerUID    int    // of one user
	ImportsPerUID int    // files of one user that the daemon reads at a time
	ListsPerUID   int    // listings that the daemon is sending to one user
	BytesPerUID   uint64 // that one user has put and that are still there; 0: no quota
	ReservedFDs   int    // open files that connections never take: segments, the catalog, the reply that says no
	InFlight      int    // descriptors sent on one connection that its client has not taken
	Streams       int    // calls at once on one connection
	RecvBytes     int    // of one message from a client
	SendBytes     int    // of one message to a client
	HeaderBytes   int    // of one call's headers

	Handshake time.Duration // from connect to the first complete call
	Idle      time.Duration // a put without a byte
	Unread    time.Duration // replies that a client leaves unread
}

// Standard is the defaults. A user's 8 puts are what a person's scripts start side by side without thinking, more than two
// cores can hash, and a quarter of all: it takes four users at their limit to keep a fifth waiting.
func Standard() Limits {
	return Limits{
		Conns: 10_000, ConnsPerUID: 1024, SilentPerUID: 32, LeasesPerUID: 65_536, Puts: 32, PutsPerUID: 8, ImportsPerUID: 2, ListsPerUID: 32, ReservedFDs: 64,
		InFlight: 32, Streams: 64, RecvBytes: 1 << 20, SendBytes: 4 << 20, HeaderBytes: 16 << 10,
		Handshake: 10 * time.Second, Idle: 30 * time.Second, Unread: 30 * time.Second,
	}
}

// minInFlight is what one attach may need: a table and eight segments, and two forms with a table and three segments each.
const minInFlight = 17

type number struct {
	flag, what string
	at         *int
	least      int
}

func (l *Limits) numbers() []number {
	return []number{
		{"max-conns", "connections of all users (fewer when the limit of open files, less --reserve-fds, is lower)", &l.Conns, 1},
		{"max-conns-per-uid", "connections of one user", &l.ConnsPerUID, 1},
		{"max-silent-per-uid", "connections of one user that have not said anything yet", &l.SilentPerUID, 1},
		{"max-leases-per-uid", "leases of one user", &l.LeasesPerUID, 1},
		{"max-puts", "open puts of all users", &l.Puts, 1},
		{"max-puts-per-uid", "open puts of one user", &l.PutsPerUID, 1},
		{"max-imports", "files of one user that the daemon reads at a time", &l.ImportsPerUID, 1},
		{"max-lists-per-uid", "listings that the daemon is sending to one user", &l.ListsPerUID, 1},
		{"reserve-fds", "open files that connections never take", &l.ReservedFDs, 48},
		{"max-fds-in-flight", "descriptors on one connection that its client has not taken", &l.InFlight, minInFlight},
		{"max-calls", "calls at once on one connection", &l.Streams, 2},
		{"max-recv-bytes", "size of one message from a client", &l.RecvBytes, 512 << 10},
		{"max-send-bytes", "size of one message to a client", &l.SendBytes, 64 << 10},
		{"max-header-bytes", "size of one call's headers", &l.HeaderBytes, 4 << 10},
	}
}

type duration struct {
	flag, what string
	at         *time.Duration
}

func (l *Limits) durations() []duration {
	return []duration{
		{"handshake-time", "how long a new connection may take to its first call", &l.Handshake},
		{"idle-time", "how long a put may be without a byte", &l.Idle},
		{"unread-time", "how long a client may leave replies unread", &l.Unread},
	}
}

// Flags adds a flag for each limit to fs, with its default, and sets l to the defaults.
func (l *Limits) Flags(fs *flag.FlagSet) {
	*l = Standard()
	for _, n := range l.numbers() {
		fs.IntVar(n.at, n.flag, *n.at, n.what)
	}
	for _, d := range l.durations() {
		fs.DurationVar(d.at, d.flag, *d.at, d.what)
	}
	fs.Func("max-bytes-per-uid", "quota of bytes that one user has put and that are still there, as in 4GiB (default: none)", func(s string) error {
		n, err := units.ParseBytes(s)
		l.BytesPerUID = n
		return err
	})
}

// Complete fills in defaults and checks all fields together. Errors: Invalid, which names every field that is wrong.
func (l Limits) Complete() (Limits, error) {
	std := Standard()
	var wrong []error
	for i, n := range l.numbers() {
		if *n.at == 0 {
			*n.at = *std.numbers()[i].at
		}
		if *n.at < n.least {
			wrong = append(wrong, fmt.Errorf("--%s is %d, the least is %d", n.flag, *n.at, n.least))
		}
	}
	for i, d := range l.durations() {
		if *d.at == 0 {
			*d.at = *std.durations()[i].at
		}
		if *d.at < 0 {
			wrong = append(wrong, fmt.Errorf("--%s is %v", d.flag, *d.at))
		}
	}
	// One user may have as much as all; more is a mistake in one of the two, unless the part is a default.
	if l.ConnsPerUID == std.ConnsPerUID {
		l.ConnsPerUID = min(l.ConnsPerUID, l.Conns)
	}
	if l.PutsPerUID == std.PutsPerUID {
		l.PutsPerUID = min(l.PutsPerUID, l.Puts)
	}
	for _, pair := range []struct {
		part, whole       int
		partFlag, allFlag string
	}{{l.ConnsPerUID, l.Conns, "max-conns-per-uid", "max-conns"}, {l.PutsPerUID, l.Puts, "max-puts-per-uid", "max-puts"}} {
		if pair.part > pair.whole {
			wrong = append(wrong, fmt.Errorf("--%s is %d, more than --%s, %d", pair.partFlag, pair.part, pair.allFlag, pair.whole))
		}
	}
	if len(wrong) > 0 {
		return l, zcerr.New(zcerr.Invalid, "%w", errors.Join(wrong...)).WithHint("zcstored --help")
	}
	return l, nil
}

// ConnsNow is how many connections fit below the limit of open files of this process as it is now, and whether that is
// less than Conns. Each connection is one descriptor.
func (l Limits) ConnsNow() (n int, byFiles bool) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Cur > 1<<30 {
		return l.Conns, false
	}
	if room := max(1, int(r.Cur)-l.ReservedFDs); room < l.Conns {
		return room, true
	}
	return l.Conns, false
}

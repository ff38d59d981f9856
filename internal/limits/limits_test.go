package limits

import (
	"errors"
	"flag"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/zcstore/zcstore/proto/zcerr"
)

func TestZeroIsTheDefaultsAndFlagsAgree(t *testing.T) {
	got, err := Limits{}.Complete()
	if err != nil || got != Standard() {
		t.Errorf("%+v, %v; want the defaults", got, err)
	}
	var byFlags Limits
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	byFlags.Flags(fs)
	if byFlags != Standard() {
		t.Errorf("flags: %+v", byFlags)
	}
	if err := fs.Parse([]string{"--max-conns=7", "--max-bytes-per-uid=2GiB", "--unread-time=3s"}); err != nil {
		t.Fatal(err)
	}
	got, err = byFlags.Complete()
	if err != nil || got.Conns != 7 || got.ConnsPerUID != 7 || got.BytesPerUID != 2<<30 || got.Unread.Seconds() != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestEveryWrongLimitIsNamedAtOnce(t *testing.T) {
	_, err := Limits{Conns: -1, Puts: 2, PutsPerUID: 3, InFlight: 8, Idle: -1}.Complete()
	if !errors.Is(err, zcerr.Invalid) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"--max-conns is -1", "--max-puts-per-uid is 3", "--max-fds-in-flight is 8", "--idle-time"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

// Each refusal names the limit, what is there and whose, and the flag that raises it; one user's end is not another's; and
// all comes back.
func TestLedger(t *testing.T) {
	l, err := Limits{Conns: 3, ConnsPerUID: 2, LeasesPerUID: 2, ListsPerUID: 2, Puts: 3, PutsPerUID: 2}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name           string
		take           func(g *Ledger, uid uint32) (func(), error)
		one, all       string // the flag; empty: there is no limit of all
		oneHas, allHas string
	}{
		{"connections", (*Ledger).Conn, "--max-conns-per-uid", "--max-conns ", "uid 5 has 2 connections, the limit of one user is 2", "uid 6 has 1 of them"},
		{"leases", (*Ledger).Lease, "--max-leases-per-uid", "", "uid 5 has 2 leases, the limit of one user is 2", ""},
		{"listings", (*Ledger).List, "--max-lists-per-uid", "", "uid 5 has 2 listings that are not read to their end, the limit of one user is 2", ""},
		{"puts", (*Ledger).Put, "--max-puts-per-uid", "--max-puts ", "2 puts are open of uid 5, the limit of one user is 2", "uid 6 has 1 of them"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := NewLedger(l)
			var back []func()
			ok := func(uid uint32) {
				t.Helper()
				b, err := tt.take(g, uid)
				if err != nil {
					t.Fatal(err)
				}
				back = append(back, b)
			}
			refused := func(uid uint32, flag, has string) {
				t.Helper()
				_, err := tt.take(g, uid)
				if !errors.Is(err, zcerr.Limit) || !strings.Contains(err.Error(), has) || !strings.Contains(zcerr.HintOf(err), flag) {
					t.Errorf("got %v (%s); want %q and %q", err, zcerr.HintOf(err), has, flag)
				}
			}
			ok(5)
			ok(5)
			refused(5, tt.one, tt.oneHas)
			ok(6)
			if tt.all != "" {
				refused(6, tt.all, tt.allHas)
			}
			back[0]()
			back[0]() // counts once
			ok(5)
			refused(5, tt.one, tt.oneHas)
			for _, b := range back {
				b()
			}
			if !g.Idle() {
				t.Error("not all came back")
			}
		})
	}
}

// A put that is open gets its bytes in, whatever the connections.
func TestUploadOfAnOpenPutComesIn(t *testing.T) {
	l, _ := Limits{Conns: 1}.Complete()
	g := NewLedger(l)
	conn, err1 := g.Conn(5)
	put, err2 := g.Put(5)
	upload, ok := g.Upload(5)
	if err := errors.Join(err1, err2); err != nil || !ok {
		t.Fatal(err, ok)
	}
	for _, uid := range []uint32{5, 6} { // one for each put, and of nobody else's
		if _, ok := g.Upload(uid); ok {
			t.Errorf("uid %d has another", uid)
		}
	}
	for _, back := range []func(){upload, put, conn} {
		back()
	}
	if !g.Idle() {
		t.Error("not all came back")
	}
}

func TestStrangersTakeNobodysPlace(t *testing.T) {
	l, _ := Limits{Conns: 1}.Complete()
	g := NewLedger(l)
	var back []func()
	for range strangers {
		b, ok := g.Stranger()
		if !ok {
			t.Fatal("refused too early")
		}
		back = append(back, b)
	}
	if _, ok := g.Stranger(); ok {
		t.Error("strangers without end")
	}
	if b, err := g.Conn(1); err != nil {
		t.Error(err)
	} else {
		b()
	}
	for _, b := range back {
		b()
	}
	if !g.Idle() {
		t.Error("not all came back")
	}
}

func TestLedgerManyAtOnce(t *testing.T) {
	g := NewLedger(Standard())
	var wg sync.WaitGroup
	for uid := range uint32(8) {
		wg.Go(func() {
			for range 500 {
				if b, err := g.Put(uid); err == nil {
					b()
				}
				if b, err := g.Conn(uid); err == nil {
					b()
				}
			}
		})
	}
	wg.Wait()
	if !g.Idle() {
		t.Error("not all came back")
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// What scripts and other languages rely on: the kinds by name, their gRPC codes and zcctl's exit codes.
var kindTable = map[string]struct {
	code codes.Code
	exit int
}{
	"other":       {codes.Unknown, 1},
	"invalid":     {codes.InvalidArgument, 2},
	"not_found":   {codes.NotFound, 3},
	"conflict":    {codes.AlreadyExists, 4},
	"unavailable": {codes.Unavailable, 5},
	"no_space":    {codes.ResourceExhausted, 6},
	"corrupt":     {codes.DataLoss, 7},
	"timeout":     {codes.DeadlineExceeded, 8},
	"denied":      {codes.PermissionDenied, 9},
	"unsupported": {codes.Unimplemented, 10},
	"limit":       {codes.ResourceExhausted, 6},
	"fault":       {codes.Aborted, 7},
	"canceled":    {codes.Canceled, 130},
}

// An error of every kind, from inside a real daemon, comes out of every way that leads to a client as what it was: a unary
// call, a put's stream, the lease stream and the raw channel; with its hint; and zcctl's exit code is that of its kind.
func TestEveryKindFromTheStoreToTheExitCode(t *testing.T) {
	socket, dir := testdaemon.Place(t)
	testdaemon.Start(t, socket, dir)
	c := testdaemon.Client(t, socket)
	s := storetest.Remote{C: c}
	storetest.Put(t, s, "m", storetest.Big()...)
	if len(zcerr.Kinds()) != len(kindTable) {
		t.Errorf("%d kinds, %d in this table: add the new one", len(zcerr.Kinds()), len(kindTable))
	}
	for _, k := range zcerr.Kinds() {
		t.Run(k.String(), func(t *testing.T) {
			want, ok := kindTable[k.String()]
			if !ok || k.Code() != want.code || k.Exit() != want.exit {
				t.Errorf("code %v, exit %d; want %+v", k.Code(), k.Exit(), want)
			}
			var failing atomic.Value // the daemon's goroutines read it
			failing.Store("statfs")
			restore := failpoint.Set(func(step string) error {
				if step != failing.Load() {
					return nil
				}
				return zcerr.New(k, "need 7, have 3, the limit is 5").WithHint("zcctl mend %v", k)
			})
			defer restore()
			for _, command := range []struct {
				step string
				args []string
			}{
				{"statfs", []string{"status"}},
				{"create-new", []string{"tag", "m:v1", "m:x"}},
				{"create-new", []string{"rm", "m:v1"}},
			} {
				failing.Store(command.step)
				var out, talk bytes.Buffer
				exit := run(context.Background(), append(command.args, "-o", "json", "--socket", socket), &out, &talk)
				var got errorJSON
				if err := json.Unmarshal(talk.Bytes(), &got); err != nil {
					t.Fatalf("%v: %v: %s", command.args, err, talk.Bytes())
				}
				if exit != want.exit || got.Error.Exit != want.exit || got.Error.Kind != k.String() || !strings.Contains(got.Error.Message, "need 7, have 3") && k != zcerr.Timeout || got.Error.Hint != fmt.Sprintf("zcctl mend %v", k) {
					t.Errorf("%v: exit %d, %+v", command.args, exit, got.Error)
				}
			}
			same := func(what string, err error) {
				t.Helper()
				if b := bodyOf(err); err == nil || b.Kind != k.String() || b.Exit != want.exit || b.Hint != fmt.Sprintf("zcctl mend %v", k) {
					t.Errorf("%s: %v: %+v", what, err, b)
				}
			}
			failing.Store("fallocate")
			_, err := s.Put("new", false, storetest.Draft(storetest.Row{Name: "x", Size: 70_000, Seed: 9}))
			same("put", err)
			failing.Store("open")
			_, err = c.Attach(context.Background(), "m")
			same("attach", err)
			raw := rawAttach(t, socket, "m")
			if raw.Kind != k.String() || raw.Hint != fmt.Sprintf("zcctl mend %v", k) {
				t.Errorf("raw channel: %+v", raw)
			}
		})
	}
	storetest.Whole(t, s, "m", storetest.Big()...) // nothing of it stuck
	storetest.Settled(t, s)
}

// rawAttach is what the raw channel answers when an attach fails.
func rawAttach(t *testing.T, socket, ref string) (e struct{ Kind, Message, Hint string }) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "ZCR1 attach %s\n", ref)
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var reply struct {
		Error *struct{ Kind, Message, Hint string }
	}
	if err := json.Unmarshal(line, &reply); err != nil || reply.Error == nil {
		t.Fatalf("%v: %s", err, line)
	}
	return *reply.Error
}

// And one that no daemon sent: there is none.
func TestNoDaemonToTheExitCode(t *testing.T) {
	c, err := client.Dial(context.Background(), client.Options{Socket: t.TempDir() + "/nobody"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Status(context.Background())
	if b := bodyOf(err); b.Kind != "unavailable" || b.Exit != 5 || !strings.Contains(b.Hint, "zcstored") {
		t.Errorf("%+v", b)
	}
}

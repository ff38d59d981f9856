package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/proto/zcerr"
)

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {errUsage, 2}, {zcerr.New(zcerr.Invalid, "x"), 2}, {zcerr.New(zcerr.Conflict, "x").WithHint("do y"), 3},
		{zcerr.New(zcerr.Corrupt, "x"), 1}, {errors.New("x"), 1},
	} {
		var said bytes.Buffer
		if got := exitCode(tt.err, &said); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
		if hint := zcerr.HintOf(tt.err); !strings.Contains(said.String(), hint) {
			t.Errorf("%v: the hint is not in %q", tt.err, said.String())
		}
	}
}

func TestFlagsOfLimitsAndAccess(t *testing.T) {
	cfg, err := parse([]string{"--max-conns=20", "--max-puts-per-uid=2", "--max-bytes-per-uid=1GiB", "--allow-uid=7", "--allow-uid", "8", "--allow-gid=9"}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	l, err := cfg.Limits.Complete()
	if err != nil || l.Conns != 20 || l.ConnsPerUID != 20 || l.PutsPerUID != 2 || l.BytesPerUID != 1<<30 || l.LeasesPerUID != limits.Standard().LeasesPerUID {
		t.Errorf("%+v, %v", l, err)
	}
	if got := cfg.Access; len(got.UIDs) != 2 || got.UIDs[1] != 8 || len(got.GIDs) != 1 {
		t.Errorf("%+v", got)
	}
	for _, wrong := range [][]string{{"--allow-uid=me"}, {"--max-conns=many"}, {"--max-bytes-per-uid=lots"}} {
		if _, err := parse(wrong, io.Discard, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
	// What is a number and makes no sense is refused before anything is touched, all of it at once.
	cfg, err = parse([]string{"--max-conns=5", "--max-conns-per-uid=6", "--max-fds-in-flight=1"}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Socket = t.TempDir() + "/s"
	err = daemon.Run(context.Background(), cfg)
	if zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "--max-conns-per-uid is 6") || !strings.Contains(err.Error(), "--max-fds-in-flight is 1") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(cfg.Socket); err == nil {
		t.Error("a socket was made")
	}
}

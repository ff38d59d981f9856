package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"syscall"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Access says who may use the daemon: root, the daemon's own user, the members of the socket's group while its mode lets
// them connect, and whom the lists name. Everybody else is refused, whatever the file system would let him do.
type Access struct {
	UIDs, GIDs []uint32

	socket string // set by Serve
}

// check decides about one connection. Errors: Denied.
func (a Access) check(c *net.UnixConn, cred peercred.Cred) error {
	if cred.UID == 0 || int(cred.UID) == os.Geteuid() || slices.Contains(a.UIDs, cred.UID) {
		return nil
	}
	gid, byGroup := a.socketGroup()
	groups, err := peercred.Groups(c)
	if err != nil {
		groups = nil // then his first group has to do
	}
	groups = append(groups, cred.GID)
	for _, g := range groups {
		if byGroup && g == gid || slices.Contains(a.GIDs, g) {
			return nil
		}
	}
	e := zcerr.New(zcerr.Denied, "uid %d may not use this daemon: it serves root, uid %d, %sand whom it was told to", cred.UID, os.Geteuid(), groupWords(gid, byGroup))
	if byGroup {
		return e.WithHint("join the socket's group, or start the daemon with --allow-uid %d", cred.UID)
	}
	return e.WithHint("start the daemon with --allow-uid %d", cred.UID)
}

func groupWords(gid uint32, byGroup bool) string {
	if !byGroup {
		return ""
	}
	return fmt.Sprintf("group %d, ", gid)
}

// socketGroup is the group of the socket as it is now, so that a chgrp needs no restart.
func (a Access) socketGroup() (gid uint32, ok bool) {
	st, err := os.Lstat(a.socket)
	if err != nil || st.Mode()&fs.ModeSocket == 0 || st.Mode().Perm()&0o020 == 0 {
		return 0, false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return sys.Gid, true
}

// admit decides whether a connection comes in. One of somebody who may not use the daemon does, while there are few such, to
// be told so on every call.
func (s *Server) admit(c *net.UnixConn, cred peercred.Cred) fdpass.Admission {
	denied := s.decide(c, cred)
	if denied != nil {
		if back, ok := s.ledger.Stranger(); ok {
			return fdpass.Admission{Denied: denied, Back: back}
		}
		return s.refuse(cred, denied)
	}
	back, err := s.ledger.Conn(cred.UID)
	if err != nil {
		return s.refuse(cred, err)
	}
	return fdpass.Admission{Back: back}
}

// admitRaw lets the bytes of an open put in, whatever the number of connections.
func (s *Server) admitRaw(cred peercred.Cred) fdpass.Admission {
	if back, ok := s.ledger.Upload(cred.UID); ok {
		return fdpass.Admission{Back: back}
	}
	return fdpass.Admission{Refuse: zcerr.New(zcerr.Limit, "no put waits for another connection")}
}

func (s *Server) refuse(cred peercred.Cred, err error) fdpass.Admission {
	s.log.Warn("connection refused", zap.Stringer("kind", zcerr.KindOf(err)), zap.Uint32("uid", cred.UID), zap.Int32("pid", cred.PID), zap.Error(err))
	return fdpass.Admission{Refuse: err}
}

// who is the peer of a call, for the log.
func who(ctx context.Context) []zap.Field {
	_, cred, _ := fdpass.FromContext(ctx)
	return []zap.Field{zap.Uint32("uid", cred.UID), zap.Int32("pid", cred.PID)}
}

// A rule says whether one call may be made.
type rule func(c *fdpass.Conn) error

// member is the rule for whoever Access lets in.
func member(c *fdpass.Conn) error { return c.Denied() }

// rules is every method there is. What is not here is refused, so a method that is added serves nobody until it is. Health
// is for members too: it says what is served.
var rules = map[string]rule{
	"/zcstore.v1.Store/Put":        member,
	"/zcstore.v1.Store/Have":       member,
	"/zcstore.v1.Store/Attach":     member,
	"/zcstore.v1.Store/List":       member,
	"/zcstore.v1.Store/Show":       member,
	"/zcstore.v1.Store/Tag":        member,
	"/zcstore.v1.Store/Remove":     member,
	"/zcstore.v1.Store/Holders":    member,
	"/zcstore.v1.Store/Verify":     member,
	"/zcstore.v1.Store/Pin":        member,
	"/zcstore.v1.Store/Status":     member,
	"/grpc.health.v1.Health/Check": member,
	"/grpc.health.v1.Health/List":  member,
	"/grpc.health.v1.Health/Watch": member,
}

// allow applies the rule of a method.
func allow(ctx context.Context, method string) error {
	r, ok := rules[method]
	if !ok {
		return zcerr.New(zcerr.Denied, "no rule says who may call %.100q", method).WithHint("use a client and a daemon of the same release")
	}
	conn, _, ok := fdpass.FromContext(ctx)
	if !ok {
		return zcerr.New(zcerr.Denied, "%w", errors.New("the call did not come over the daemon's socket"))
	}
	return r(conn)
}

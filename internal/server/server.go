// Package server puts a store on a Unix socket: gRPC for control and descriptors, the raw channel for bytes and for other
// languages. It parses requests, calls the store and maps errors; what is stored, and why not, is decided there.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// Protocol is the version this server speaks.
const Protocol = 1

// drainTimeout is how long open puts may go on at the end.
const drainTimeout = 10 * time.Second

// flushTime is how long the answers of those puts may take to go.
const flushTime = 200 * time.Millisecond

// Server serves one store.
type Server struct {
	zcstorev1.UnimplementedStoreServer

	st      *store.Store
	log     *zap.Logger
	version string
	ledger  *limits.Ledger
	access  Access                                   // immutable once Serve has begun
	decide  func(*net.UnixConn, peercred.Cred) error // access.check; replaced by tests before Serve
	clients atomic.Int32                             // open Attach streams

	mu      sync.Mutex
	tickets map[string]*upload // guarded by mu
	puts    running            // Put calls
	imports *slots             // immutable
}

// New makes a server for a store, with standard limits. version is shown by Status.
func New(st *store.Store, log *zap.Logger, version string) *Server {
	return NewWith(st, log, version, limits.Standard(), Access{})
}

// NewWith is New with limits, which must be complete, and with who may use it.
func NewWith(st *store.Store, log *zap.Logger, version string, l limits.Limits, a Access) *Server {
	if log == nil {
		log = zap.NewNop()
	}
	s := &Server{st: st, log: log, version: version, ledger: limits.NewLedger(l), access: a, tickets: map[string]*upload{}, imports: newSlots(l.ImportsPerUID, l.Idle)}
	s.decide = func(c *net.UnixConn, cred peercred.Cred) error { return s.access.check(c, cred) }
	return s
}

// Listen listens on a path socket (0660). It takes over the socket of a dead daemon, and refuses that of a living one and
// anything that is no socket.
func Listen(path string) (*net.UnixListener, error) {
	if len(path) > 107 {
		return nil, zcerr.New(zcerr.Invalid, "socket path %s has %d bytes, the kernel takes 107", path, len(path)).WithHint("choose a shorter one with --socket")
	}
	if dir, err := os.Stat(filepath.Dir(path)); err == nil && dir.Mode().Perm()&0o002 != 0 && dir.Mode()&os.ModeSticky == 0 {
		return nil, zcerr.New(zcerr.Denied, "everybody may write to %s, and so put another socket in the place of this one", filepath.Dir(path)).
			WithHint("chmod o-w %s, or choose another --socket", filepath.Dir(path))
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&os.ModeSocket == 0 {
			return nil, zcerr.New(zcerr.Conflict, "%s is there and is no socket", path).WithHint("move it away, or choose another --socket")
		}
		if c, err := net.DialTimeout("unix", path, 2*time.Second); err == nil {
			c.Close()
			return nil, zcerr.New(zcerr.Conflict, "another daemon answers on %s", path).WithHint("use it (zcctl --socket %s status), or choose another --socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket of a dead daemon: %w", err)
		}
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		ln.Close()
		return nil, fmt.Errorf("socket mode: %w", err)
	}
	return ln, nil
}

// Serve serves until ctx ends; then it lets open puts finish for a while and closes everything. It owns ln.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	s.access.socket = ln.Addr().String()
	g, alive := s.grpc()
	l := s.ledger.Limits()
	grpcLn, rawLn := fdpass.Split(ln, fdpass.SplitOptions{PeekTimeout: l.Handshake, MaxSilent: l.SilentPerUID, Admit: s.admit, AdmitRaw: s.admitRaw})
	var raw sync.WaitGroup
	rawCtx, endRaw := context.WithCancel(context.WithoutCancel(ctx)) // open puts get their bytes to the end
	defer endRaw()
	raw.Add(1)
	go func() {
		defer raw.Done()
		s.serveRaw(rawCtx, rawLn, &raw)
	}()
	stop := context.AfterFunc(ctx, func() {
		alive.Shutdown()
		done := make(chan struct{})
		busy := s.ledger.OpenPuts() > 0
		go func() { s.puts.wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(drainTimeout):
			s.log.Warn("open puts were cut", zap.Duration("after", drainTimeout))
		}
		endRaw()
		rawLn.Close()
		if busy { // Stop would cut off the last put's answer, which gRPC may still be writing
			late := time.AfterFunc(flushTime, g.Stop)
			g.GracefulStop()
			late.Stop()
		}
		g.Stop()
	})
	served := make(chan error, 1)
	go func() { served <- g.Serve(grpcLn) }()
	var err error
	select {
	case err = <-served:
		if stop() { // it ended by itself
			endRaw()
			rawLn.Close()
			g.Stop()
		}
	case <-ctx.Done():
		s.puts.wait()
		select {
		case <-served:
		case <-time.After(time.Second): // connections that have not finished their handshake hold grpc up for its whole time
			s.log.Warn("connections that never spoke were left behind")
		}
	}
	raw.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// grpc makes the gRPC half, with everything registered.
func (s *Server) grpc() (*grpc.Server, *health.Server) {
	l := s.ledger.Limits()
	g := grpc.NewServer(
		grpc.Creds(fdpass.ServerCredentials(fdpass.ServerOptions{WriteTimeout: l.Unread, Unread: l.Unread, MaxInFlight: l.InFlight})),
		grpc.MaxConcurrentStreams(uint32(l.Streams)), grpc.MaxRecvMsgSize(l.RecvBytes), grpc.MaxSendMsgSize(l.SendBytes),
		grpc.MaxHeaderListSize(uint32(l.HeaderBytes)), grpc.ConnectionTimeout(l.Handshake),
		grpc.ReadBufferSize(1<<10), grpc.WriteBufferSize(4<<10), // ten thousand idle connections keep what they read into
		grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream),
	)
	zcstorev1.RegisterStoreServer(g, s)
	alive := health.NewServer()
	alive.SetServingStatus("zcstore.v1.Store", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g, alive)
	return g, alive
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer func() { err = s.finish(ctx, info.FullMethod, start, recover(), err) }()
	if err := allow(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	start := time.Now()
	defer func() { err = s.finish(ss.Context(), info.FullMethod, start, recover(), err) }()
	if err := allow(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}

// finish turns a panic into an error, logs what failed, and gives errors their wire form.
func (s *Server) finish(ctx context.Context, method string, start time.Time, panicked any, err error) error {
	if panicked != nil {
		s.log.Error("panic in a handler", zap.String("method", method), zap.Any("panic", panicked), zap.ByteString("stack", debug.Stack()))
		err = zcerr.New(zcerr.Other, "internal error in %s", method).WithHint("this is a bug of zcstored; its log has the stack")
	}
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok && !errors.As(err, new(*zcerr.Error)) {
		return err // of the transport
	}
	_, cred, _ := fdpass.FromContext(ctx)
	s.log.Info("refused", zap.String("method", method), zap.Stringer("kind", zcerr.KindOf(err)), zap.Int32("pid", cred.PID),
		zap.Uint32("uid", cred.UID), zap.Duration("dur", time.Since(start)), zap.Error(err))
	return zcerr.ToStatus(err).Err()
}

func checkProtocol(got uint32) error {
	if got != Protocol {
		return zcerr.New(zcerr.Unsupported, "the client speaks protocol %d, this daemon protocol %d", got, Protocol).
			WithHint("use a client and a daemon of the same release")
	}
	return nil
}

// maxHave is how many sizes or digests one call may ask for.
const maxHave = 100_000

// Have implements the service.
func (s *Server) Have(_ context.Context, req *zcstorev1.HaveRequest) (*zcstorev1.HaveReply, error) {
	if len(req.Digests)%len(manifest.Digest{}) != 0 {
		return nil, zcerr.New(zcerr.Invalid, "%d bytes are no list of digests", len(req.Digests))
	}
	digests := make([]manifest.Digest, len(req.Digests)/len(manifest.Digest{}))
	if max(len(digests), len(req.Sizes)) > maxHave {
		return nil, zcerr.New(zcerr.Limit, "%d sizes and %d digests, the limit is %d a call", len(req.Sizes), len(digests), maxHave).WithHint("ask in parts")
	}
	for i := range digests {
		copy(digests[i][:], req.Digests[i*len(manifest.Digest{}):])
	}
	sizes, known := s.st.Have(req.Sizes, digests)
	return &zcstorev1.HaveReply{Sizes: bitsOf(sizes), Digests: bitsOf(known)}, nil
}

func bitsOf(set []bool) []byte {
	b := make([]byte, (len(set)+7)/8)
	for i, on := range set {
		if on {
			b[i/8] |= 1 << (i % 8)
		}
	}
	return b
}

// List implements the service. A client that does not read costs a page and what gRPC holds of it, and nobody waits for it.
func (s *Server) List(req *zcstorev1.ListRequest, out zcstorev1.Store_ListServer) error {
	back, err := s.listing(out.Context())
	if err != nil {
		return err
	}
	defer back()
	l, err := s.st.Listing(req.Name, req.All)
	if err != nil {
		return err
	}
	return sendPages(out, l.Next, versionInfo)
}

// listing counts a listing of the caller's.
func (s *Server) listing(ctx context.Context) (back func(), err error) {
	_, cred, _ := fdpass.FromContext(ctx)
	return s.ledger.List(cred.UID)
}

// sendPages sends what next gives until that is nothing.
func sendPages[In, Out any](to grpc.ServerStreamingServer[Out], next func() []In, message func(In) *Out) error {
	for page := next(); len(page) > 0; page = next() {
		for _, in := range page {
			if err := to.Send(message(in)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Show implements the service.
func (s *Server) Show(_ context.Context, req *zcstorev1.ShowRequest) (*zcstorev1.VersionInfo, error) {
	info, err := s.st.Show(req.Ref)
	if err != nil {
		return nil, err
	}
	return versionInfo(info), nil
}

// Tag implements the service.
func (s *Server) Tag(ctx context.Context, req *zcstorev1.TagRequest) (*zcstorev1.TagReply, error) {
	digest, previous, err := s.st.TagAs(req.Source, req.Target, req.Replace, derive.Form(req.Form))
	if err != nil {
		return nil, err
	}
	r := &zcstorev1.TagReply{Digest: digest[:]}
	if previous != ([32]byte{}) {
		r.Previous = previous[:]
	}
	s.log.Info("tag", append(who(ctx), zap.String("model", req.Target), zap.Stringer("digest", digest), zap.Bool("moved", len(r.Previous) > 0))...)
	return r, nil
}

// Remove implements the service.
func (s *Server) Remove(ctx context.Context, req *zcstorev1.RemoveRequest) (*zcstorev1.RemoveReply, error) {
	rm, err := s.st.Remove(req.Ref, req.All)
	if err != nil {
		return nil, err
	}
	r := &zcstorev1.RemoveReply{Untagged: rm.Untagged, FreedBytes: rm.Freed, HeldBytes: rm.Held, PinnedBytes: rm.Pinned}
	for _, d := range rm.Versions {
		r.Removed = append(r.Removed, d[:])
	}
	s.log.Info("remove", append(who(ctx), zap.String("model", req.Ref), zap.Uint64("freed_bytes", rm.Freed), zap.Uint64("held_bytes", rm.Held), zap.Uint64("pinned_bytes", rm.Pinned))...)
	return r, nil
}

// Verify implements the service.
func (s *Server) Verify(ctx context.Context, req *zcstorev1.VerifyRequest) (*zcstorev1.VerifyReply, error) {
	verify := s.st.Verify
	if req.Quick {
		verify = s.st.VerifyQuick
	}
	v, err := verify(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	return &zcstorev1.VerifyReply{Ref: v.Ref, Digest: v.Digest[:], Tensors: uint32(v.Tensors), Bytes: v.Bytes, Damaged: v.Damaged, OnDisk: v.Disk, Reloads: v.Reload, DamagedForms: v.Forms}, nil
}

// Pin implements the service.
func (s *Server) Pin(_ context.Context, req *zcstorev1.PinRequest) (*zcstorev1.PinReply, error) {
	info, err := s.st.Pin(req.Ref, req.Off)
	if err != nil {
		return nil, err
	}
	s.log.Info("pin", zap.String("model", req.Ref), zap.Bool("off", req.Off), zap.Stringer("digest", info.Digest))
	return &zcstorev1.PinReply{Version: versionInfo(info)}, nil
}

// Holders implements the service, as List.
func (s *Server) Holders(req *zcstorev1.HoldersRequest, out zcstorev1.Store_HoldersServer) error {
	back, err := s.listing(out.Context())
	if err != nil {
		return err
	}
	defer back()
	return sendPages(out, s.st.Holding(req.Name).Next, holderInfo)
}

func holderInfo(l store.LeaseInfo) *zcstorev1.Holder {
	return &zcstorev1.Holder{
		Lease: l.ID, Ref: l.Ref, Digest: l.Digest[:], Pid: l.Holder.PID, Uid: l.Holder.UID, Command: l.Holder.Command,
		SinceUnixMs: l.Since.UnixMilli(), Deleted: l.Deleted, Form: string(l.Form),
	}
}

// Status implements the service.
func (s *Server) Status(context.Context, *zcstorev1.StatusRequest) (*zcstorev1.StatusReply, error) {
	st, err := s.st.Status()
	if err != nil {
		return nil, err
	}
	var forms []*zcstorev1.FormStatus
	for _, f := range st.Forms {
		forms = append(forms, &zcstorev1.FormStatus{Form: string(f.Form), Versions: uint32(f.Versions), Bytes: f.Bytes})
	}
	return &zcstorev1.StatusReply{
		Forms:    forms,
		Protocol: Protocol, TableVersion: table.Version, SegmentFormat: store.SegmentFormat, Version: s.version,
		Pid: int32(os.Getpid()), Uid: uint32(os.Geteuid()), Instance: st.Instance, Backing: st.Backing, Directory: st.Directory,
		Guarantee: st.Guarantee, Durability: st.Durability, CapacityBytes: st.Capacity, FreeBytes: st.Free, UsedBytes: st.Used,
		HeldAfterDeleteBytes: st.Held, Models: uint32(st.Models), Versions: uint32(st.Versions), Segments: uint32(st.Segments),
		Leases: uint32(st.Leases), Clients: uint32(s.clients.Load()), OpenPuts: uint32(st.OpenPuts),
		StartedUnixMs: st.Started.UnixMilli(), AdoptedVersions: uint32(st.Adopted),
		DataDirectory: st.Data.Directory, DataBytes: st.Data.Bytes, DataFreeBytes: st.Data.Free, DataReadOnly: st.Data.ReadOnly,
		ColdVersions: uint32(st.Cold), UnwrittenVersions: uint32(st.Unwritten), DamagedVersions: uint32(st.Damaged), BudgetBytes: st.BudgetBytes,
		Guards: guards(st.Guards, st.HugeBytes), OverheadBytes: st.Overhead, ReservedBytes: st.Reserved, OrphanedBytes: st.Orphaned,
		OwnMount: st.OwnMount,
		Limits:   limitsInfo(s.ledger.Limits()),
	}, nil
}

func versionInfo(v store.VersionInfo) *zcstorev1.VersionInfo {
	out := &zcstorev1.VersionInfo{
		Name: v.Name, Tags: v.Tags, Digest: v.Digest[:], TensorBytes: v.TensorBytes, Tensors: uint32(v.Tensors),
		Holders: uint32(v.Holders), CreatedUnixMs: v.Created.UnixMilli(), Deleted: v.Deleted, Kind: v.Kind,
		TableBytes: v.TableBytes, Damaged: v.Damaged, Resident: v.Resident, OnDisk: v.OnDisk, Pinned: v.Pinned,
	}
	out.Segments = segmentInfos(v.Segments)
	for _, f := range v.Forms {
		out.Forms = append(out.Forms, &zcstorev1.FormInfo{
			Form: string(f.Form), Bytes: f.Bytes, TableBytes: f.TableBytes, Segments: segmentInfos(f.Segments), Holders: uint32(f.Holders),
		})
	}
	for tag, f := range v.TagForms {
		if out.TagForms == nil {
			out.TagForms = map[string]string{}
		}
		out.TagForms[tag] = string(f)
	}
	return out
}

func segmentInfos(list []store.SegmentInfo) (out []*zcstorev1.SegmentInfo) {
	for _, sg := range list {
		out = append(out, &zcstorev1.SegmentInfo{
			Id: sg.ID, SizeBytes: sg.SizeBytes, UsedBytes: sg.UsedBytes, Inode: sg.Inode, Versions: uint32(sg.Versions), Guarantee: sg.Guarantee,
			Guards: guards(sg.Guards, sg.HugeBytes),
		})
	}
	return out
}

// Package client is how a Go program uses a zcstore daemon.
//
//	c, err := client.Dial(ctx, client.Options{})       // the default socket
//	m, err := c.Attach(ctx, "minilm:prod")             // maps the version's shared segments, read-only
//	v, err := m.Tensor(row)                            // a view on the shared pages: nothing is copied
//	m.Close()
//
// Most programs use client/pipeline (structs with models in them) or client/text (ready text pipelines) on top of it.
//
// # Leases
//
// A Client keeps one stream to the daemon open; it is the lease on everything attached, and ends with the process, however
// that ends. When the daemon goes away, models that are attached keep computing on the pages they have mapped, and the next
// call connects to the new daemon, which has the leases again within a second: the client takes them anew by itself.
//
// # Closing, and memory that goes away
//
// [Model.Close] waits for whoever computes, and later uses are errors of kind Canceled; it may be called at any time. When
// somebody with the daemon's rights cuts a segment, computing on it is an error of kind Fault, and the process, its other models
// and its locks are as before. Models that compute on a gpu.Stream have both without doing anything. A program that reads tensors
// itself does so inside [Model.Read].
//
// # Prefault
//
// By default a page of the weights is mapped in at its first use. [Prefault], or $ZCSTORE_PREFAULT, has that done ahead: in the
// background, or before Attach returns.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/socketpath"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/region"
)

// Protocol is the version this client speaks.
const Protocol = 1

// Options say how to reach the daemon. The zero value is the default socket.
type Options struct {
	Socket    string                 // empty: $ZCSTORE_SOCKET, else the system's or the user's default
	ServerUID func(uid uint32) error // who may be the daemon; nil: see TrustServer
}

// Client is a connection to one daemon. It is safe for concurrent use.
type Client struct {
	socket string
	conn   *grpc.ClientConn
	api    zcstorev1.StoreClient

	leases *leases

	refusal atomic.Pointer[zcerr.Error] // what the daemon said when it last refused a connection; nil when it serves, or nobody answers

	closing chan struct{} // closed by Close

	mu     sync.Mutex
	closed bool            // guarded by mu
	models map[*Model]bool // guarded by mu; not yet closed
}

// Dial makes a client. The connection is made by the first call, and again after the daemon was restarted.
func Dial(_ context.Context, opt Options) (*Client, error) {
	if opt.Socket == "" {
		opt.Socket = socketpath.Default()
	}
	c := &Client{socket: opt.Socket, models: map[*Model]bool{}, closing: make(chan struct{})}
	if opt.ServerUID == nil {
		opt.ServerUID = func(uid uint32) error { return TrustServer(opt.Socket, uid) }
	}
	creds := fdpass.ClientCredentials(fdpass.ClientOptions{AllowServerUID: opt.ServerUID, Answer: c.answered})
	if len(opt.Socket) > maxSocketPath {
		return nil, zcerr.New(zcerr.Invalid, "socket path %s has %d bytes, the kernel takes %d", opt.Socket, len(opt.Socket), maxSocketPath).WithHint("name a shorter one with --socket or $%s", socketpath.Env)
	}
	conn, err := grpc.NewClient("passthrough:///zcstored",
		grpc.WithUnaryInterceptor(awakeUnary), grpc.WithStreamInterceptor(awakeStream),
		grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(4<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", opt.Socket)
			if err != nil {
				c.refusal.Store(nil)
			}
			return conn, err
		}))
	if err != nil {
		return nil, zcerr.Wrap("dial", "", err)
	}
	c.conn, c.api = conn, zcstorev1.NewStoreClient(conn)
	c.leases = &leases{api: c.api, turn: make(chan struct{}, 1), lost: c.renew}
	return c, nil
}

const maxSocketPath = 107

// awake has a connection that failed and waits to try again do so now: a call that is made is reason enough, and the daemon
// may have been started meanwhile.
func awake(ctx context.Context, cc *grpc.ClientConn) {
	if cc.GetState() != connectivity.TransientFailure {
		return
	}
	cc.ResetConnectBackoff()
	// A Unix socket answers within a millisecond or not at all; until it does, the state stays what it is.
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	cc.WaitForStateChange(ctx, connectivity.TransientFailure)
}

func awakeUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	awake(ctx, cc)
	return invoke(ctx, method, req, reply, cc, opts...)
}

func awakeStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	awake(ctx, cc)
	return stream(ctx, desc, cc, method, opts...)
}

// answered notes whether the daemon serves the connection that was made, or refused it and why.
func (c *Client) answered(refusal error) {
	var e *zcerr.Error
	errors.As(refusal, &e)
	c.refusal.Store(e)
}

// Socket is the path of the daemon's socket.
func (c *Client) Socket() string { return c.socket }

// Close ends the lease and closes every model that is still attached, each as [Model.Close] does: it waits for what computes.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	var open []*Model
	for m := range c.models {
		open = append(open, m)
	}
	c.mu.Unlock()
	for _, m := range open {
		m.unmap()
	}
	close(c.closing)
	c.leases.close()
	return c.conn.Close()
}

// fail gives an error of a call its op, model and, when no daemon answered, what to do about that.
func (c *Client) fail(op, model string, err error) error {
	if err == nil {
		return nil
	}
	err = zcerr.FromStatus(err)
	var e *zcerr.Error
	if refusal := c.refusal.Load(); refusal != nil && zcerr.KindOf(err) == zcerr.Unavailable {
		return zcerr.Wrap(op, model, refusal)
	}
	if errors.As(err, &e) && e.Kind == zcerr.Unavailable && e.Hint == "" {
		e = &zcerr.Error{Kind: e.Kind, Err: fmt.Errorf("no daemon answers on %s: %w", c.socket, rootCause(e.Err))}
		e.Hint = "start one ('zcstored --dev --socket " + c.socket + "'), or name the socket of a running one with --socket or $" + socketpath.Env
		err = e
		if _, why, ok := strings.Cut(e.Err.Error(), "refuse the server: "); ok {
			err = zcerr.New(zcerr.Denied, "the daemon on %s is not trusted: %s", c.socket, why).WithHint("if it is the right one, name its user: export %s=USER", EnvServerUID)
		}
		if strings.Contains(e.Err.Error(), "permission denied") {
			err = zcerr.New(zcerr.Denied, "uid %d may not connect to %s", os.Geteuid(), c.socket).WithHint("the socket's group decides who may: ls -l %s; join it, or use another daemon", c.socket)
		}
	}
	if errors.As(err, &e) && e.Kind == zcerr.Timeout && e.Hint == "" {
		err = zcerr.New(zcerr.Timeout, "the daemon on %s did not answer in time", c.socket)
	}
	return zcerr.Wrap(op, model, err)
}

// rootCause shortens what grpc wraps around a failed dial.
func rootCause(err error) error {
	if err == nil {
		return nil
	}
	msg := err.Error()
	if i := strings.LastIndex(msg, "desc = \""); i >= 0 {
		msg = msg[i+len("desc = \""):]
	}
	msg = strings.TrimPrefix(msg, "connection error: desc = ")
	msg = strings.Trim(msg, "\"")
	msg = strings.TrimPrefix(msg, "transport: ")
	return errors.New(msg)
}

// Attach takes a lease on a version and maps it. The caller closes the model. Errors: Invalid, NotFound, Corrupt,
// Unavailable, Limit, Unsupported (another table version, or a form that the version does not have), NoSpace, Fault (its files are
// being cut). Options: [Prefault], [Form], [Tokenizers].
func (c *Client) Attach(ctx context.Context, ref string, opts ...AttachOption) (*Model, error) {
	if err := checkRef("attach", ref); err != nil {
		return nil, err
	}
	o, err := attachOptions(opts)
	if err != nil {
		return nil, c.fail("attach", ref, err)
	}
	m, err := c.attach(ctx, ref, o)
	if err != nil {
		return nil, c.fail("attach", ref, err)
	}
	if err := m.prefault(ctx, o.prefault); err != nil {
		_ = m.Close()
		return nil, c.fail("attach", ref, err)
	}
	return m, nil
}

func (c *Client) attach(ctx context.Context, ref string, o attachChoices) (*Model, error) {
	var m *Model
	err := c.leases.exchange(ctx, openRequest(ref, &zcstorev1.AttachOptions{Form: o.form, Tokenizers: o.tokenizers}),
		func(reply *zcstorev1.AttachReply, fds *fdpass.Conn) error {
			opened, err := opened(reply)
			if err != nil {
				return err
			}
			m, err = c.mapVersion(opened, fds)
			return err
		}, func() { _ = m.Close() })
	if err != nil {
		return nil, err
	}
	return m, nil
}

func openRequest(ref string, o *zcstorev1.AttachOptions) func() *zcstorev1.AttachRequest {
	return func() *zcstorev1.AttachRequest {
		return &zcstorev1.AttachRequest{Step: &zcstorev1.AttachRequest_Open{Open: ref}, Options: o}
	}
}

// opened is the reply to an open.
func opened(reply *zcstorev1.AttachReply) (*zcstorev1.Attached, error) {
	if e := reply.GetError(); e != nil {
		return nil, fromWire(e)
	}
	if reply.GetOpened() == nil {
		return nil, zcerr.New(zcerr.Other, "the daemon answered something else")
	}
	return reply.GetOpened(), nil
}

// take takes the descriptors of a reply. The caller owns them.
func take(a *zcstorev1.Attached, fds *fdpass.Conn) ([]*os.File, error) {
	var files []*os.File
	var lost error
	for i := range a.Fds {
		f, err := fds.Take(a.FirstFd + uint64(i))
		if err != nil {
			lost = err
			continue
		}
		files = append(files, f)
	}
	fds.Discard(a.FirstFd + uint64(a.Fds) - 1)
	if lost != nil {
		closeAll(files)
		if errors.Is(lost, net.ErrClosed) { // the reply was the last thing that the daemon did
			return nil, zcerr.New(zcerr.Unavailable, "%w", lost)
		}
		return nil, zcerr.New(zcerr.Limit, "%w", lost).WithHint("raise the limit of open files (ulimit -n), or close some")
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func fromWire(e *zcstorev1.Error) error {
	for _, k := range zcerr.Kinds() {
		if k.String() == e.Kind {
			return &zcerr.Error{Kind: k, Op: e.Op, Model: e.Model, Hint: e.Hint, Err: errors.New(e.Message)}
		}
	}
	return &zcerr.Error{Kind: zcerr.Other, Op: e.Op, Model: e.Model, Hint: e.Hint, Err: errors.New(e.Message)}
}

// mapVersion takes the descriptors of a reply, maps them and closes them: a mapping needs none.
func (c *Client) mapVersion(a *zcstorev1.Attached, fds *fdpass.Conn) (*Model, error) {
	files, err := take(a, fds)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	m := newModel(c, a.Ref)
	m.lease, m.gen = a.Lease, c.leases.gen
	if err := m.mapFiles(a, files); err != nil {
		m.unmap()
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		m.unmap()
		return nil, zcerr.New(zcerr.Canceled, "the client is closed")
	}
	c.models[m] = true
	return m, nil
}

func (m *Model) mapFiles(a *zcstorev1.Attached, files []*os.File) (err error) {
	defer region.Caught(region.On(), &err) // the table is read here, and may be cut as anything else
	if len(files) == 0 || len(a.Digest) != len(m.digest) {
		return zcerr.New(zcerr.Corrupt, "the daemon handed out nothing")
	}
	if a.TableVersion != table.Version {
		return zcerr.New(zcerr.Unsupported, "the daemon writes table version %d, this program reads %d", a.TableVersion, table.Version).
			WithHint("use a client and a daemon of the same release")
	}
	copy(m.digest[:], a.Digest)
	for _, f := range files {
		if err := shm.CheckSeals(f, a.Seals); err != nil {
			return zcerr.New(zcerr.Corrupt, "what was handed out is not what the daemon says: %w", err)
		}
	}
	tm, err := shm.MapIn(m.gate, files[0], int(a.TableBytes))
	if err != nil {
		return zcerr.New(zcerr.Corrupt, "table: %w", err)
	}
	m.maps = append(m.maps, tm)
	if m.table, err = table.Open(tm.Bytes()); err != nil {
		return zcerr.New(zcerr.Corrupt, "%w", err)
	}
	if m.table.Digest() != m.digest || m.table.Segments() >= len(files) {
		return zcerr.New(zcerr.Corrupt, "the table is of another version than the reply")
	}
	own, more := files[1:1+m.table.Segments()], files[1+m.table.Segments():]
	if m.segs, err = m.mapSegments(m.table, own); err != nil {
		return err
	}
	return m.mapForms(a, more)
}

// mapSegments maps the files of a table.
func (m *Model) mapSegments(t *table.Table, files []*os.File) (segs []*shm.Mapping, err error) {
	for i, f := range files {
		sg, err := t.Segment(i)
		if err != nil {
			return nil, zcerr.New(zcerr.Corrupt, "%w", err)
		}
		mp, err := shm.MapIn(m.gate, f, int(sg.Bytes))
		if err != nil {
			return nil, zcerr.New(zcerr.Corrupt, "segment %d: %w", i, err)
		}
		m.maps = append(m.maps, mp)
		segs = append(segs, mp)
	}
	return segs, nil
}

// renew takes the leases of all attached models anew, by digest, after the daemon went away: their pages are mapped and need
// nothing, but the next daemon should know who uses what. It goes on until it has succeeded or the client is closed.
func (c *Client) renew() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-c.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		c.mu.Lock()
		var held []*Model
		for m := range c.models {
			held = append(held, m)
		}
		c.mu.Unlock()
		if c.renewAll(ctx, held) == nil {
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (c *Client) renewAll(ctx context.Context, held []*Model) error {
	for _, m := range held {
		name, _, _ := strings.Cut(m.ref, ":")
		err := c.leases.exchange(ctx,
			func() *zcstorev1.AttachRequest {
				if m.gen == c.leases.gen {
					return nil
				}
				return openRequest(name+"@"+m.digest.String(), m.asked())()
			},
			func(reply *zcstorev1.AttachReply, fds *fdpass.Conn) error {
				m.gen, m.lease = c.leases.gen, 0
				a, err := opened(reply)
				switch zcerr.KindOf(err) {
				case zcerr.NotFound, zcerr.Corrupt: // removed meanwhile: nobody but the kernel holds its pages for us
					return nil
				}
				if err != nil {
					m.gen = 0 // ask again
					return err
				}
				files, err := take(a, fds)
				closeAll(files)
				m.lease = a.Lease
				return err
			}, func() {})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkRef refuses what is no reference before it goes over the wire, which takes only UTF-8.
func checkRef(op, r string) error {
	if _, err := ref.Parse(r); err != nil {
		return &zcerr.Error{Kind: zcerr.Invalid, Op: op, Model: r, Hint: ref.Hint, Err: err}
	}
	return nil
}

// checkName is checkRef for an optional bare name.
func checkName(op, name string) error {
	if name == "" {
		return nil
	}
	r, err := ref.Parse(name)
	if err == nil && !r.Bare() {
		err = fmt.Errorf("%s names a version; a bare name is wanted here", name)
	}
	if err != nil {
		return &zcerr.Error{Kind: zcerr.Invalid, Op: op, Model: name, Hint: "write a bare NAME: zcctl ls names them", Err: err}
	}
	return nil
}

// List gives the stored versions of a model, or of all when name is empty; with all, also deleted ones that are held.
func (c *Client) List(ctx context.Context, name string, all bool) ([]*zcstorev1.VersionInfo, error) {
	if err := checkName("ls", name); err != nil {
		return nil, err
	}
	stream, err := c.api.List(ctx, &zcstorev1.ListRequest{Name: name, All: all})
	if err != nil {
		return nil, c.fail("ls", name, err)
	}
	out, err := collect(stream)
	return out, c.fail("ls", name, err)
}

// Holders gives the leases on a model, or all when name is empty, oldest first.
func (c *Client) Holders(ctx context.Context, name string) ([]*zcstorev1.Holder, error) {
	if err := checkName("ps", name); err != nil {
		return nil, err
	}
	stream, err := c.api.Holders(ctx, &zcstorev1.HoldersRequest{Name: name})
	if err != nil {
		return nil, c.fail("ps", name, err)
	}
	out, err := collect(stream)
	return out, c.fail("ps", name, err)
}

func collect[T any](stream grpc.ServerStreamingClient[T]) ([]*T, error) {
	var out []*T
	for {
		v, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
}

// Show gives one version.
func (c *Client) Show(ctx context.Context, ref string) (*zcstorev1.VersionInfo, error) {
	if err := checkRef("show", ref); err != nil {
		return nil, err
	}
	v, err := c.api.Show(ctx, &zcstorev1.ShowRequest{Ref: ref})
	return v, c.fail("show", ref, err)
}

// Tag points target (NAME:TAG) at the version source. An existing tag moves only with replace, and keeps its default form.
func (c *Client) Tag(ctx context.Context, source, target string, replace bool) (*zcstorev1.TagReply, error) {
	return c.TagAs(ctx, source, target, replace, "")
}

// TagAs is Tag that also sets the form of who attaches by the tag and names none, see [Form]; empty leaves it as it is.
func (c *Client) TagAs(ctx context.Context, source, target string, replace bool, form string) (*zcstorev1.TagReply, error) {
	if err := checkRef("tag", source); err != nil {
		return nil, err
	}
	if err := checkRef("tag", target); err != nil {
		return nil, err
	}
	r, err := c.api.Tag(ctx, &zcstorev1.TagRequest{Source: source, Target: target, Replace: replace, Form: form})
	return r, c.fail("tag", target, err)
}

// Remove takes a tag, a version or, with a bare name, a model away. Workers keep what they have mapped.
func (c *Client) Remove(ctx context.Context, ref string, all bool) (*zcstorev1.RemoveReply, error) {
	if err := checkRef("rm", ref); err != nil {
		return nil, err
	}
	r, err := c.api.Remove(ctx, &zcstorev1.RemoveRequest{Ref: ref, All: all})
	return r, c.fail("rm", ref, err)
}

// Verify has the daemon read a version's bytes and compare their digests. Damaged tensors are no error of the call: they are
// named in the reply, and the version is not served any more.
func (c *Client) Verify(ctx context.Context, ref string) (*zcstorev1.VerifyReply, error) {
	return c.verify(ctx, ref, false)
}

// VerifyQuick is Verify with CRC32C in place of SHA-256: it finds accidents, not attacks, and is as fast as memory. Errors: also
// Unsupported, when the version has segments without such checksums.
func (c *Client) VerifyQuick(ctx context.Context, ref string) (*zcstorev1.VerifyReply, error) {
	return c.verify(ctx, ref, true)
}

func (c *Client) verify(ctx context.Context, ref string, quick bool) (*zcstorev1.VerifyReply, error) {
	if err := checkRef("verify", ref); err != nil {
		return nil, err
	}
	r, err := c.api.Verify(ctx, &zcstorev1.VerifyRequest{Ref: ref, Quick: quick})
	return r, c.fail("verify", ref, err)
}

// Pin keeps a version in memory, whatever else needs room, or with off lets go of it. It holds for the version that the
// reference names now, not for the tag. One that is only on disk is loaded first.
func (c *Client) Pin(ctx context.Context, ref string, off bool) (*zcstorev1.VersionInfo, error) {
	if err := checkRef("pin", ref); err != nil {
		return nil, err
	}
	r, err := c.api.Pin(ctx, &zcstorev1.PinRequest{Ref: ref, Off: off})
	return r.GetVersion(), c.fail("pin", ref, err)
}

// Status tells what the daemon is and holds.
func (c *Client) Status(ctx context.Context) (*zcstorev1.StatusReply, error) {
	r, err := c.api.Status(ctx, &zcstorev1.StatusRequest{})
	return r, c.fail("status", "", err)
}

// Digest reads the digest of a message.
func Digest(b []byte) manifest.Digest {
	var d manifest.Digest
	copy(d[:], b)
	return d
}

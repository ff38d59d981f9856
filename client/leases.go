package client

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// attachTimeout bounds one request on the lease stream when the caller's context does not.
const attachTimeout = 30 * time.Second

// leases is the client's stream to the daemon: everything opened on it is held until it ends. Requests on it are one at a
// time; whoever has the turn may use the fields below it.
type leases struct {
	api  zcstorev1.StoreClient
	lost func() // called, in a goroutine of its own, after a stream that served has ended

	turn chan struct{} // holds one token while somebody has the turn
	lane *lane         // nil before the first request, and after the daemon went away
	fds  *fdpass.Conn
	gen  int // counts streams: a lease of another generation went with its stream
	shut bool

	receivers sync.WaitGroup // and what they start
}

// exchange makes one request and gives its reply, with the connection that brought it, to use. build is asked for the request
// when it is its turn, with a stream open; nil means that there is nothing to ask any more. The request is finished even when
// ctx ends first, so that a reply and its descriptors never go astray; undo is then called.
func (l *leases) exchange(ctx context.Context, build func() *zcstorev1.AttachRequest, use func(*zcstorev1.AttachReply, *fdpass.Conn) error, undo func()) error {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	done := make(chan error)
	go func() {
		err := l.request(build, use)
		<-l.turn
		select {
		case done <- err:
		case <-ctx.Done():
			if err == nil {
				undo()
			}
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// request is one exchange, with the turn. On a stream that broke, because the daemon was restarted, it is made once more.
func (l *leases) request(build func() *zcstorev1.AttachRequest, use func(*zcstorev1.AttachReply, *fdpass.Conn) error) error {
	for {
		if l.shut {
			return zcerr.New(zcerr.Canceled, "the client is closed")
		}
		fresh := l.lane == nil
		if fresh {
			if err := l.open(); err != nil {
				return err
			}
		}
		req := build()
		if req == nil {
			return nil
		}
		reply, err := l.roundTrip(req)
		if err == nil {
			if err = use(reply, l.fds); !errors.Is(err, net.ErrClosed) {
				return err
			}
		}
		l.drop()
		if fresh || zcerr.KindOf(zcerr.FromStatus(err)) != zcerr.Unavailable && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

// lane is one stream with its receiver, which notices at once when the daemon goes.
type lane struct {
	zcstorev1.Store_AttachClient
	end     context.CancelFunc
	greeted bool                        // the protocol was named; of whoever has the turn
	replies chan *zcstorev1.AttachReply // closed when the stream has ended
	err     error                       // why; read after replies is closed
}

func (l *leases) open() error {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := l.api.Attach(ctx)
	if err != nil {
		cancel()
		return err
	}
	n := &lane{Store_AttachClient: stream, end: cancel, replies: make(chan *zcstorev1.AttachReply, 1)}
	l.lane = n
	l.gen++
	l.receivers.Add(1)
	go func() {
		defer l.receivers.Done()
		if n.receive() {
			l.gone(n)
		}
	}()
	return nil
}

// receive hands replies on until the stream ends, and says whether it ever served.
func (n *lane) receive() (served bool) {
	defer close(n.replies)
	for {
		reply, err := n.Recv()
		if err != nil {
			n.err = err
			return served
		}
		served = true
		select {
		case n.replies <- reply:
		case <-n.Context().Done(): // a second reply to one request: nobody waits for it
			n.err = n.Context().Err()
			return served
		}
	}
}

// gone drops a stream that has served and ended, unless a request did so before, and says that leases are lost.
func (l *leases) gone(n *lane) {
	l.turn <- struct{}{}
	if l.lane == n {
		l.drop()
	}
	<-l.turn
	l.lost()
}

func (l *leases) roundTrip(req *zcstorev1.AttachRequest) (*zcstorev1.AttachReply, error) {
	timer := time.AfterFunc(attachTimeout, l.lane.end)
	defer timer.Stop()
	if !l.lane.greeted {
		l.lane.greeted = true
		req.Protocol = Protocol
	}
	if l.fds != nil {
		req.Claimed = l.fds.Settled()
	}
	if err := l.lane.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	reply, ok := <-l.lane.replies // after an EOF of Send, it has the reason
	if !ok {
		return nil, l.lane.err
	}
	if l.fds == nil {
		fds, _, ok := fdpass.FromContext(l.lane.Context())
		if !ok {
			return nil, errors.New("the connection carries no descriptors")
		}
		l.fds = fds
	}
	return reply, nil
}

// drop ends the stream, with the turn.
func (l *leases) drop() {
	if l.lane != nil {
		l.lane.end()
	}
	l.lane, l.fds = nil, nil
}

// close ends the stream for good. The client is marked closed by now, so lost does nothing.
func (l *leases) close() {
	l.turn <- struct{}{}
	l.shut = true
	l.drop()
	<-l.turn
	l.receivers.Wait()
}

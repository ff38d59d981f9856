package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/zcstore/zcstore/internal/peercred"
)

// ServerOptions: the zero value works.
type ServerOptions struct {
	WriteTimeout time.Duration // 0: 5 s. A client that does not read for this long, while there is more to send than the socket takes, is cut.
	Unread       time.Duration // 0: 30 s. A client that leaves what was sent unread for this long is cut.
	SendWait     time.Duration // 0: 200 ms. How long a reply waits while the user has too many files in flight.
	MaxInFlight  int           // 0: 64. Files of one connection that the client has not settled.
}

// ClientOptions: the zero value works.
type ClientOptions struct {
	AllowServerUID func(uid uint32) error // nil: root and the own effective uid. An error refuses the server.
	OrphanTTL      time.Duration          // 0: 1 min. How long a file waits to be taken.
	Answer         func(refusal error)    // nil: nobody. Told once for each connection that the server answers: the *zcerr.Error it refused it with, or nil when it serves.
}

// AuthInfo is what gRPC keeps of the connection, at both ends.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Conn *Conn
	Peer peercred.Cred
}

// AuthType implements credentials.AuthInfo.
func (AuthInfo) AuthType() string { return "zcstore-unix" }

// FromContext finds the connection and the peer of a call: in a handler, or with the context of a client's stream.
// Conn is nil and ok false when the call did not come over these credentials.
func FromContext(ctx context.Context) (conn *Conn, cred peercred.Cred, ok bool) {
	p, _ := peer.FromContext(ctx)
	if conn = PeerConn(p); conn == nil {
		return nil, peercred.Cred{}, false
	}
	return conn, conn.peer, true
}

// PeerConn is the connection that p names, p being filled by the grpc.Peer call option: the one that brought this very
// reply, whatever was redialled in between. nil when p is not from these credentials.
func PeerConn(p *peer.Peer) *Conn {
	if p == nil {
		return nil
	}
	info, _ := p.AuthInfo.(AuthInfo)
	return info.Conn
}

// ServerCredentials are for grpc.Creds of a server that listens on a Unix socket. One value may serve many servers.
func ServerCredentials(o ServerOptions) credentials.TransportCredentials {
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = 5 * time.Second
	}
	if o.Unread <= 0 {
		o.Unread = 30 * time.Second
	}
	if o.SendWait <= 0 {
		o.SendWait = 200 * time.Millisecond
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 64
	}
	return creds{so: o}
}

// ClientCredentials are for grpc.WithTransportCredentials on a unix: target. One value may serve many clients.
func ClientCredentials(o ClientOptions) credentials.TransportCredentials {
	if o.AllowServerUID == nil {
		o.AllowServerUID = func(uid uint32) error {
			if own := os.Geteuid(); uid != 0 && uid != uint32(own) {
				return fmt.Errorf("the server runs as uid %d; expected 0 or %d", uid, own)
			}
			return nil
		}
	}
	if o.OrphanTTL <= 0 {
		o.OrphanTTL = time.Minute
	}
	return creds{co: o}
}

type creds struct {
	so ServerOptions
	co ClientOptions
}

// ServerHandshake sees what the client begins with; gRPC's ConnectionTimeout bounds the wait. On error gRPC closes raw.
func (c creds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c.so.MaxInFlight == 0 {
		return nil, nil, errors.New("client credentials given to a server")
	}
	conn, err := c.wrap(raw)
	if err != nil {
		return nil, nil, err
	}
	conn.server = true
	first, err := peek(conn.u)
	if err != nil {
		return nil, nil, err
	}
	switch first {
	case MagicFramed:
		conn.framed = true
		if _, err := io.ReadFull(conn.u, make([]byte, len(MagicFramed))); err != nil {
			return nil, nil, err
		}
	case preface:
	default:
		return nil, nil, fmt.Errorf("%v speaks no gRPC: it began with %q", conn.peer, first)
	}
	return conn, conn.info(), nil
}

// ClientHandshake refuses a server of the wrong uid. On error gRPC closes raw.
func (c creds) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c.co.AllowServerUID == nil {
		return nil, nil, errors.New("server credentials given to a client")
	}
	conn, err := c.wrap(raw)
	if err != nil {
		return nil, nil, err
	}
	if err := c.co.AllowServerUID(conn.peer.UID); err != nil {
		return nil, nil, fmt.Errorf("refuse the server: %w", err)
	}
	conn.held = make(map[uint64]entry)
	conn.oob = make([]byte, unix.CmsgSpace(4*maxRights))
	if _, err := conn.u.Write([]byte(MagicFramed)); err != nil { // the socket is empty, so this does not wait
		return nil, nil, err
	}
	return conn, conn.info(), nil
}

func (c creds) wrap(raw net.Conn) (*Conn, error) {
	u, ok := raw.(*net.UnixConn)
	var denied error
	if a, is := raw.(*Accepted); is {
		u, ok, denied = a.UnixConn, true, a.Denied
	}
	if !ok {
		return nil, fmt.Errorf("descriptors need a Unix socket, got a %T", raw)
	}
	cred, err := peercred.Identify(u)
	if err != nil {
		return nil, err
	}
	conn := &Conn{u: u, shut: raw.Close, denied: denied, peer: cred, so: c.so, co: c.co, done: make(chan struct{})}
	conn.sendmsg = func(b, oob []byte) (int, error) {
		n, _, err := u.WriteMsgUnix(b, oob, nil)
		return n, err
	}
	return conn, nil
}

func (c *Conn) info() AuthInfo {
	return AuthInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, c, c.peer}
}

func (c creds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "zcstore-unix"}
}
func (c creds) Clone() credentials.TransportCredentials { return c }
func (c creds) OverrideServerName(string) error         { return nil }

package fdpass

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// A refused connection is told why, in the protocol it speaks, and closed:
//
//   - a client that takes files gets one record whose two counts are refusalMark, and whose bytes are the refusal;
//   - a plain gRPC client gets the refusal as the status of its first call, and a GOAWAY;
//   - the raw channel, and whoever says nothing, gets the refusal as a line.
//
// The refusal is JSON: {"error":{"kind":"limit","message":"...","hint":"..."}}.
const (
	refusalMark = 0xFFFF // no record has so many files
	maxRefusal  = 16 << 10

	maxRefusals  = 16                     // being told at once; beyond it the oldest is closed
	refusalQuiet = 200 * time.Millisecond // how long a refused caller may take to say what it speaks
	refusalTime  = 500 * time.Millisecond // and to go
)

type refusal struct {
	Error struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
	} `json:"error"`
}

func encodeRefusal(err error) []byte {
	var r refusal
	r.Error.Kind, r.Error.Message, r.Error.Hint = zcerr.KindOf(err).String(), err.Error(), zcerr.HintOf(err)
	b, merr := json.Marshal(r)
	if merr != nil || len(b) > maxRefusal {
		b = []byte(`{"error":{"kind":"limit","message":"the daemon refuses this connection"}}`)
	}
	return b
}

// refusals are the callers that are being told.
type refusals struct {
	mu     sync.Mutex
	open   []*net.UnixConn // guarded by mu; oldest first
	closed bool            // guarded by mu
}

// add makes room for c by closing the oldest; it says no after close.
func (r *refusals) add(c *net.UnixConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if len(r.open) >= maxRefusals {
		r.open[0].Close() // its goroutine takes it out
	}
	r.open = append(r.open, c)
	return true
}

func (r *refusals) remove(c *net.UnixConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.open, c); i >= 0 {
		r.open = slices.Delete(r.open, i, i+1)
	}
}

func (r *refusals) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, c := range r.open {
		c.Close()
	}
}

// refuse takes ownership of c, tells it why and closes it. It does not wait.
func (s *splitter) refuse(c *net.UnixConn, cred peercred.Cred, why error) {
	if !s.refusals.add(c) {
		c.Close()
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		pardoned := false
		defer func() {
			s.refusals.remove(c)
			if !pardoned {
				c.Close()
			}
		}()
		end := time.Now().Add(refusalTime)
		c.SetReadDeadline(time.Now().Add(refusalQuiet))
		first, _ := peek(c)
		if first == MagicRaw && s.o.AdmitRaw != nil {
			if verdict := s.o.AdmitRaw(cred); verdict.Refuse == nil {
				pardoned = true
				s.let(accepted(c, verdict))
				return
			}
		}
		c.SetDeadline(end)
		if first == preface {
			if refuseCall(c, why) != nil {
				return
			}
		} else if _, err := c.Write(inProtocol(first, encodeRefusal(why))); err != nil {
			return
		}
		// A socket that is closed with bytes unread fails the peer's next write, which may come before it reads.
		if c.CloseWrite() == nil {
			b := make([]byte, 4<<10)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		}
	}()
}

// let takes ownership of a connection of the raw channel that comes in after all.
func (s *splitter) let(c *Accepted) {
	c.SetReadDeadline(time.Time{})
	s.mu.Lock()
	s.waiting++
	s.mu.Unlock()
	s.wg.Add(1) // the caller's own keeps it above zero
	s.pass(c, MagicRaw)
}

func inProtocol(first string, text []byte) []byte {
	if first != MagicFramed {
		return append(text, '\n')
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
	b = binary.BigEndian.AppendUint16(b, refusalMark)
	b = binary.BigEndian.AppendUint16(b, refusalMark)
	return append(b, text...)
}

// refused is what the client makes of a complete refusal. Called with mu held.
func (c *Conn) refused() error {
	err, ok := ParseRefusal(c.refusal)
	if !ok {
		return errors.New("the server's refusal cannot be read")
	}
	c.answer(err)
	return err
}

// ParseRefusal reads a refusal as it comes on the raw channel; ok is false when text is none.
func ParseRefusal(text []byte) (_ *zcerr.Error, ok bool) {
	var r refusal
	if err := json.Unmarshal(text, &r); err != nil || r.Error.Message == "" {
		return nil, false
	}
	err := &zcerr.Error{Kind: zcerr.Other, Hint: r.Error.Hint, Err: errors.New(r.Error.Message)}
	for _, k := range zcerr.Kinds() {
		if k.String() == r.Error.Kind {
			err.Kind = k
		}
	}
	return err, true
}

// answer tells ClientOptions.Answer, once. Called with mu held.
func (c *Conn) answer(refusal error) {
	if !c.heard {
		c.heard = true
		if c.co.Answer != nil {
			c.co.Answer(refusal)
		}
	}
}

package worker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// The protocol between a program and one of its workers, over two pipes:
//
//	worker   hello     the token from its environment
//	program  setup     which actor, its arguments
//	worker   ready     or failure
//	program  request   with a number; the worker replies answer or failure with the same number.
//	program  cancel    any time: the request of that number need not be finished. It is replied to all the same.
//	program  bye       the worker closes its actor and says closed or failure, and ends
//
// There is one request at a time. The end of the program's pipe, without bye, ends the worker at once.
type verb uint8

const (
	hello verb = iota + 1
	setup
	ready
	request
	answer
	failure
	cancel
	bye
	closed
)

var verbs = [...]string{hello: "hello", setup: "setup", ready: "ready", request: "request", answer: "answer",
	failure: "failure", cancel: "cancel", bye: "bye", closed: "closed"}

func (v verb) String() string {
	if int(v) >= len(verbs) || v == 0 {
		return fmt.Sprintf("verb(%d)", uint8(v))
	}
	return verbs[v]
}

// A frame on the pipe is a head and a body. The head: "zw", verb, version; number (u32); body length (u64);
// CRC-32C of the body; CRC-32C of the head so far. All little-endian.
const (
	headBytes = 24
	version   = 1
	maxBody   = 4 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type frame struct {
	verb verb
	num  uint32
	body []byte
}

// blank is the start of a message: room for the head, so that a frame is one write. Append the body to it.
func blank(room int) []byte { return make([]byte, headBytes, headBytes+room) }

// link is one end of the two pipes. send is safe for concurrent use, recv is for one goroutine.
type link struct {
	r *bufio.Reader

	mu sync.Mutex // one frame at a time
	w  io.Writer  // guarded by mu
}

func newLink(r io.Reader, w io.Writer) *link {
	return &link{r: bufio.NewReaderSize(r, 64<<10), w: w}
}

// send writes a frame. msg comes from blank, or is nil for no body; it is overwritten.
func (l *link) send(v verb, num uint32, msg []byte) error {
	if msg == nil {
		msg = blank(0)
	}
	head, body := msg[:headBytes], msg[headBytes:]
	if len(body) > maxBody {
		return fmt.Errorf("a message of %d bytes is over the limit of %d", len(body), maxBody)
	}
	head[0], head[1], head[2], head[3] = 'z', 'w', byte(v), version
	binary.LittleEndian.PutUint32(head[4:], num)
	binary.LittleEndian.PutUint64(head[8:], uint64(len(body)))
	binary.LittleEndian.PutUint32(head[16:], crc32.Checksum(body, castagnoli))
	binary.LittleEndian.PutUint32(head[20:], crc32.Checksum(head[:20], castagnoli))
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.w.Write(msg)
	return err
}

// errFrame is a pipe that carries something else than frames.
var errFrame = errors.New("not a frame")

// recv reads a frame. The body is the caller's. io.EOF is the end of the pipe between frames.
func (l *link) recv() (frame, error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(l.r, head[:]); err != nil {
		return frame{}, err
	}
	if head[0] != 'z' || head[1] != 'w' || head[3] != version {
		return frame{}, fmt.Errorf("%w: it starts with %q", errFrame, head[:4])
	}
	if crc32.Checksum(head[:20], castagnoli) != binary.LittleEndian.Uint32(head[20:]) {
		return frame{}, fmt.Errorf("%w: checksum of the head is wrong", errFrame)
	}
	f := frame{verb: verb(head[2]), num: binary.LittleEndian.Uint32(head[4:])}
	n := binary.LittleEndian.Uint64(head[8:])
	if n > maxBody {
		return frame{}, fmt.Errorf("%w: %v of %d bytes", errFrame, f.verb, n)
	}
	f.body = make([]byte, n)
	if _, err := io.ReadFull(l.r, f.body); err != nil {
		return frame{}, fmt.Errorf("in a %v of %d bytes: %w", f.verb, n, err)
	}
	if crc32.Checksum(f.body, castagnoli) != binary.LittleEndian.Uint32(head[16:]) {
		return frame{}, fmt.Errorf("%w: checksum of a %v of %d bytes is wrong", errFrame, f.verb, n)
	}
	return f, nil
}

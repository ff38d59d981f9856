package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// oneTensor is a draft of one tensor of n bytes.
func oneTensor(data io.ReaderAt, n int) *manifest.Draft {
	return &manifest.Draft{
		Root:    &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage(`{}`), Params: []manifest.Param{{Name: "w"}}},
		Tensors: []manifest.DraftTensor{{Names: []string{"w"}, DType: tensor.U8, Shape: tensor.Shape{n}, Data: data}},
	}
}

func connect(t *testing.T, socket string) *client.Client {
	t.Helper()
	c, err := client.Dial(context.Background(), client.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Case 13: a source on a file system that does not answer costs its own put, after the idle time, and its slot until it
// answers. Two of them hold both slots of their user, whose puts of bytes go on; then the slots are back.
func TestCase13SourceThatHangs(t *testing.T) {
	const size = 1 << 20
	path, hanging, end := hungFuse(t, size)
	l := limits.Standard()
	l.Idle = 300 * time.Millisecond
	s, socket := serve(t, l)
	c := connect(t, socket)
	ctx := context.Background()
	hung, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	for range l.ImportsPerUID {
		_, err := c.Put(ctx, "hung", oneTensor(io.NewSectionReader(hung, 0, size), size), client.PutOptions{})
		if !errors.Is(err, zcerr.Timeout) {
			t.Fatalf("a source that hangs: %v", err)
		}
	}
	if n := hanging.Load(); n < int32(l.ImportsPerUID) {
		t.Errorf("%d reads hang", n)
	}
	good := filepath.Join(t.TempDir(), "good")
	if err := os.WriteFile(good, bytes.Repeat([]byte("w"), size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(good)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file := func() error {
		_, err := c.Put(ctx, "good", oneTensor(io.NewSectionReader(f, 0, size), size), client.PutOptions{})
		return err
	}
	if err := file(); !errors.Is(err, zcerr.Limit) || !strings.Contains(zcerr.HintOf(err), "--max-imports") {
		t.Errorf("a third file: %v", err)
	}
	if _, err := c.Put(ctx, "bytes", oneTensor(bytes.NewReader(bytes.Repeat([]byte("b"), size+1)), size+1), client.PutOptions{}); err != nil {
		t.Errorf("bytes beside it: %v", err)
	}
	release, err := s.imports.take(ctx, 4711)
	if err != nil {
		t.Errorf("another user: %v", err)
	} else {
		release()
	}
	hung.Close()
	end()
	if err := file(); err != nil {
		t.Errorf("after the file system was gone: %v", err)
	}
	st, err := c.Status(ctx)
	if err != nil || st.OpenPuts != 0 || st.Versions != 2 {
		t.Errorf("%v, %v", st, err)
	}
}

// socketPair is a connected pair of Unix sockets.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// FuzzFrame gives the frames of the sources channel to their reader: it takes no more rows than there are, and ends.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("E\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("B\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03"))
	f.Add([]byte("F\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		peer, conn := socketPair(t)
		defer peer.Close()
		defer conn.Close()
		if _, err := peer.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		in := &idleReader{conn: conn, ctx: context.Background(), idle: 10 * time.Second}
		const rows = 100
		for {
			f, file, err := readFrame(in, rows)
			if err != nil {
				return
			}
			if file != nil || f.kind == frameFile || len(f.rows) > rows || f.kind == frameEnd && len(f.rows) > 0 {
				t.Fatalf("%+v, file %v", f, file)
			}
		}
	})
}

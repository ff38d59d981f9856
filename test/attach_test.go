package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/shm/tensor"
)

// bareArgs are a socket to serve and the files to hand out on it.
type bareArgs struct {
	Socket string
	Files  []string
}

// bare is the least that a hand-out can cost: a process that answers one byte with one byte and descriptors beside it.
var bare = worker.Define("e2e.bare", func(_ context.Context, a bareArgs) (worker.Actor[int, int], error) {
	var fds []int
	for _, path := range a.Files {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.Socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var b [1]byte
				for {
					if _, err := conn.Read(b[:]); err != nil {
						return
					}
					if err := fdpass.SendFDs(conn, b[:], fds...); err != nil {
						return
					}
				}
			}()
		}
	}()
	return worker.Func[int, int](func(_ context.Context, n int) (int, error) { return n, nil }), nil
})

// bareGet is one such hand-out, mapped. The caller unmaps.
func bareGet(conn *net.UnixConn, sizes []int) (maps [][]byte, err error) {
	if _, err := conn.Write([]byte{1}); err != nil {
		return nil, err
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*len(sizes)))
	_, n, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%d control messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != len(sizes) {
		return nil, fmt.Errorf("%d descriptors, %v", len(fds), err)
	}
	for i, fd := range fds {
		m, err := unix.Mmap(fd, 0, sizes[i], unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		maps = append(maps, m)
		_ = unix.Close(fd)
	}
	return maps, nil
}

// quantile is the q-th part of the samples of a name.
func (s *samples) quantile(name string, q float64) time.Duration {
	d := slices.Clone(s.of[name])
	slices.Sort(d)
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// viewsOf attaches and makes a view on every tensor, with its bounds checked and no page of the weights touched.
func viewsOf(c *client.Client, ref string, want int) (*client.Model, []tensor.View, error) {
	m, err := c.Attach(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	views, err := m.Views()
	if err == nil && len(views) != want {
		err = fmt.Errorf("%d views, want %d", len(views), want)
	}
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, views, nil
}

// BenchmarkAttach is the floor of an attach, turn by turn with the least that handing out and mapping the same two files can
// cost: 420 MB in 200 tensors, until a view on each exists. -benchtime 1000x is 1,000 fresh mappings of each kind.
func BenchmarkAttach(b *testing.B) {
	p := start(b)
	put(b, p, "big", big())
	first, _, err := viewsOf(p.c, "big", 200)
	must(b, err)
	files, err := filepath.Glob(p.dir + "/[st]-*")
	must(b, err)
	var sizes []int
	for _, f := range files {
		st, err := os.Stat(f)
		must(b, err)
		sizes = append(sizes, int(st.Size()))
	}
	socket := p.socket + "b"
	w, err := worker.Start(ctx, bare, bareArgs{Socket: socket, Files: files}, worker.Options{Workers: 1})
	must(b, err)
	defer w.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	must(b, err)
	defer conn.Close()

	var s samples
	for b.Loop() {
		var maps [][]byte
		must(b, s.time("bare", func() (err error) { maps, err = bareGet(conn, sizes); return err }))
		for _, m := range maps {
			must(b, unix.Munmap(m))
		}
		var m *client.Model
		must(b, s.time("warm", func() (err error) { m, _, err = viewsOf(p.c, "big", 200); return err }))
		must(b, s.time("close", m.Close))
		var c *client.Client
		must(b, s.time("cold", func() (err error) {
			if c, err = client.Dial(ctx, client.Options{Socket: p.socket}); err == nil {
				_, _, err = viewsOf(c, "big", 200)
			}
			return err
		}))
		must(b, c.Close())
	}
	maps, err := mapsBelow(p.dir, "/proc/self/smaps")
	must(b, err)
	for _, m := range maps {
		for _, sg := range first.Segments() {
			if m.Inode == sg.Inode && m.RSS != 0 {
				b.Errorf("%d kB of weights were touched", m.RSS)
			}
		}
	}
	must(b, first.Close())
	b.ReportMetric(0, "ns/op")
	for _, n := range s.names {
		b.ReportMetric(float64(s.quantile(n, 0.5).Nanoseconds())/1e3, n+"-p50-us")
		b.ReportMetric(float64(s.quantile(n, 0.99).Nanoseconds())/1e3, n+"-p99-us")
	}
	b.ReportMetric(float64(s.median("warm"))/float64(s.median("bare")), "warm-x-bare")
}

// many is a version of n small tensors.
func many(n int) *manifest.Draft {
	d := &manifest.Draft{Tensors: make([]manifest.DraftTensor, n)}
	root := &manifest.Node{Kind: manifest.Module, Impl: "test.many", Config: []byte("{}")}
	for i := range d.Tensors {
		data := []byte{byte(i), byte(i >> 8), byte(i >> 16), 1}
		name := fmt.Sprintf("layer.%06d", i)
		d.Tensors[i] = manifest.DraftTensor{Names: []string{name}, DType: tensor.U8, Shape: tensor.Shape{2, 2}, Data: bytes.NewReader(data)}
		root.Params = append(root.Params, manifest.Param{Name: name, Tensor: i})
	}
	d.Root = root
	return d
}

// BenchmarkAttachMany is an attach of 100,000 tensors, until a view on each exists.
func BenchmarkAttachMany(b *testing.B) {
	const n = 100_000
	p := start(b)
	_, err := p.c.Put(ctx, "many", many(n), client.PutOptions{})
	must(b, err)
	var s samples
	for b.Loop() {
		var m *client.Model
		must(b, s.time("attach", func() (err error) { m, _, err = viewsOf(p.c, "many", n); return err }))
		must(b, m.Close())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(s.median("attach").Nanoseconds())/1e6, "p50-ms")
	b.ReportMetric(float64(s.quantile("attach", 0.99).Nanoseconds())/1e6, "p99-ms")
}

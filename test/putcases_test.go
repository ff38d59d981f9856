package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// openPut is a put that waits for its bytes, without the SDK.
type openPut struct {
	stream putStream
	plan   *zcstorev1.PutPlan
	man    *manifest.Sealed
	end    func() // closes its connection
}

func beginPut(t testing.TB, p *place) *openPut {
	t.Helper()
	c, conn := api(t, p, insecure.NewCredentials())
	o := &openPut{man: sealed(t), end: func() { conn.Close() }}
	var err error
	if o.stream, err = c.Put(ctx); err != nil {
		t.Fatal(err)
	}
	if o.plan, err = planned(o.stream, o.man); err != nil {
		t.Fatal(err)
	}
	return o
}

// refusal commits, and is why the put was refused.
func (o *openPut) refusal(t testing.TB) error {
	t.Helper()
	_ = o.stream.Send(commit) // the stream may be over already
	r, err := o.stream.Recv()
	if err == nil {
		t.Fatalf("the daemon answered %v", r)
	}
	return zcerr.FromStatus(err)
}

// frame is a frame of the sources channel, of rows in order.
func sourceFrame(kind byte, rows ...uint64) []byte {
	b := append([]byte{kind, 0, 0, 0}, binary.BigEndian.AppendUint32(nil, uint32(len(rows)))...)
	for i, off := range rows {
		b = binary.BigEndian.AppendUint32(b, uint32(i))
		b = binary.BigEndian.AppendUint64(b, off)
	}
	return b
}

// rawUnix opens the raw channel of a put.
func rawUnix(t testing.TB, p *place, verb string) *net.UnixConn {
	t.Helper()
	c := dialRaw(t, p).(*net.UnixConn)
	if _, err := c.Write([]byte("ZCR1 " + verb + "\n")); err != nil {
		t.Fatal(err)
	}
	return c
}

// sameDescriptors waits until the daemon has as many descriptors as it had.
func sameDescriptors(t *testing.T, p *place, before int) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		now := descriptors(t, p)
		if now == before {
			return
		}
		if time.Since(begin) > 10*time.Second {
			t.Errorf("the daemon has %d descriptors, before %d", now, before)
			return
		}
	}
}

func descriptors(t *testing.T, p *place) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.daemon.PID()))
	if err != nil {
		t.Skipf("the daemon's descriptors cannot be counted: %v", err)
	}
	return len(names)
}

// Case 12: what is no regular file opened for reading is refused by its kind, at once, and nothing of it stays open.
func TestCase12DescriptorsOfEveryKind(t *testing.T) {
	p, other := withBystander(t)
	other.works(t)
	before := descriptors(t, p)
	dir := t.TempDir()
	regular := filepath.Join(dir, "regular")
	if err := os.WriteFile(regular, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string, flags int) func() (int, error) {
		return func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) }
	}
	memfd := func(flags int) func() (int, error) {
		return func() (int, error) {
			fd, err := unix.MemfdCreate("zc", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
			if err != nil {
				return -1, err
			}
			if flags < 0 {
				return fd, unix.Ftruncate(fd, 1<<20)
			}
			defer unix.Close(fd)
			return unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC, 0)
		}
	}
	for _, tt := range []struct {
		name string
		open func() (int, error)
		want string
	}{
		{"fifo", open(fifo, unix.O_RDWR|unix.O_NONBLOCK), "a pipe"},
		{"directory", open(dir, unix.O_RDONLY), "a directory"},
		{"socket", func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) }, "a socket"},
		{"character device", open("/dev/zero", unix.O_RDONLY), "a character device"},
		{"O_PATH", open(regular, unix.O_PATH), "O_PATH"},
		{"O_WRONLY", open(regular, unix.O_WRONLY), "opened for writing"},
		{"O_RDWR", open(regular, unix.O_RDWR), "opened for reading and writing"},
		{"epoll", func() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) }, "[eventpoll]"},
		{"eventfd", func() (int, error) { return unix.Eventfd(0, unix.EFD_CLOEXEC) }, "[eventfd]"},
		{"pidfd", func() (int, error) { return unix.PidfdOpen(os.Getpid(), 0) }, "[pidfd]"},
		{"unsealed memfd, as it was made", memfd(-1), "opened for reading and writing"},
		{"unsealed memfd, read-only and empty", memfd(unix.O_RDONLY), "of a file that has 0"}, // taken: it is only read
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd, err := tt.open()
			if err != nil {
				t.Skipf("cannot be made here: %v", err)
			}
			defer unix.Close(fd)
			o := beginPut(t, p)
			c := rawUnix(t, p, "sources "+o.plan.Ticket)
			begin := time.Now()
			if err := fdpass.SendFDs(c, sourceFrame('F', 0), fd); err != nil {
				t.Fatal(err)
			}
			err = o.refusal(t)
			if !errors.Is(err, zcerr.Invalid) || !strings.Contains(err.Error(), tt.want) || time.Since(begin) > 5*time.Second {
				t.Errorf("after %v: %v, want %q", time.Since(begin), err, tt.want)
			}
			c.Close()
			o.end()
			other.works(t)
			sameDescriptors(t, p, before)
		})
	}
}

// Case 14: descriptors where none belong, or more than belong there, end the connection, and the daemon closes every one.
func TestCase14TooManyDescriptors(t *testing.T) {
	p, other := withBystander(t)
	other.works(t)
	before := descriptors(t, p)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	many := func(n int) []int {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(f.Fd())
		}
		return fds
	}
	for _, tt := range []struct {
		name string
		send func(c *net.UnixConn, ticket string) error
		put  bool // the put hears of it
	}{
		{"253 on a frame", func(c *net.UnixConn, ticket string) error {
			_, err := c.Write([]byte("ZCR1 sources " + ticket + "\n"))
			return errors.Join(err, fdpass.SendFDs(c, sourceFrame('F', 0), many(253)...))
		}, true},
		{"2 on a frame", func(c *net.UnixConn, ticket string) error {
			_, err := c.Write([]byte("ZCR1 sources " + ticket + "\n"))
			return errors.Join(err, fdpass.SendFDs(c, sourceFrame('F', 0), many(2)...))
		}, true},
		{"1 on a frame of bytes", func(c *net.UnixConn, ticket string) error {
			_, err := c.Write([]byte("ZCR1 sources " + ticket + "\n"))
			return errors.Join(err, fdpass.SendFDs(c, sourceFrame('B', 0), many(1)...))
		}, true},
		{"none on a frame of a file", func(c *net.UnixConn, ticket string) error {
			_, err := c.Write(append([]byte("ZCR1 sources "+ticket+"\n"), sourceFrame('F', 0)...))
			return err
		}, true},
		{"253 among the bytes of a put", func(c *net.UnixConn, ticket string) error {
			_, err := c.Write([]byte("ZCR1 put " + ticket + "\n"))
			return errors.Join(err, fdpass.SendFDs(c, []byte("bytes"), many(253)...))
		}, true},
		{"253 on the first line", func(c *net.UnixConn, ticket string) error {
			return fdpass.SendFDs(c, []byte("ZCR1 put "+ticket+"\n"), many(253)...)
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := beginPut(t, p)
			c := dialRaw(t, p).(*net.UnixConn)
			if err := tt.send(c, o.plan.Ticket); err != nil {
				t.Fatal(err)
			}
			if got := whole(t, c, 5*time.Second); got != "" {
				t.Errorf("answer %q", got)
			}
			if tt.put {
				if err := o.refusal(t); !errors.Is(err, zcerr.Invalid) {
					t.Errorf("the put was told %v", err)
				}
			}
			o.end()
			other.works(t)
			sameDescriptors(t, p, before)
		})
	}
	if err := fdpass.SendFDs(dialRaw(t, p).(*net.UnixConn), []byte("x"), many(254)...); err == nil {
		t.Error("254 descriptors were sent")
	}
}

// Case 15: a source that claims to be huge is refused before a byte of it is stored; one that is smaller than it is said to be, too.
func TestCase15SparseSourceAndLyingSize(t *testing.T) {
	p, other := withBystander(t)
	const size = math.MaxInt64 &^ (1<<20 - 1) // 8 EiB, as far as a file can be
	dir, err := os.MkdirTemp("/dev/shm", fmt.Sprintf("zcstore-test-%d-sparse-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sparse := filepath.Join(dir, "m.safetensors")
	const data = 1 << 61
	head := file(`{`+fmt.Sprintf(`"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}`, int64(data), int64(data))+`}`, 0)
	if err := os.WriteFile(sparse, head, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{size, int64(len(head)) + data} {
		if err := os.Truncate(sparse, n); err != nil {
			t.Fatal(err)
		}
		before, err := p.c.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		err = importAndPut(p.c, "sparse", sparse)
		switch {
		case n == size: // bytes behind the last tensor
			refused(t, err, zcerr.Invalid, []string{"ends at"})
		default:
			refused(t, err, zcerr.NoSpace, []string{"2.0 EiB needed", "free"})
		}
		after, err := p.c.Status(ctx)
		if err != nil || after.UsedBytes != before.UsedBytes || time.Since(begin) > 5*time.Second {
			t.Errorf("%d bytes more, after %v, %v", after.UsedBytes-before.UsedBytes, time.Since(begin), err)
		}
		other.works(t)
	}
	// A file that has fewer bytes than the row is said to have there.
	short, err := os.Open(sparse)
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	if err := os.Truncate(sparse, 10); err != nil {
		t.Fatal(err)
	}
	for _, off := range []uint64{0, 11, 1 << 62, math.MaxUint64} {
		o := beginPut(t, p)
		c := rawUnix(t, p, "sources "+o.plan.Ticket)
		if err := fdpass.SendFDs(c, sourceFrame('F', off), int(short.Fd())); err != nil {
			t.Fatal(err)
		}
		refused(t, o.refusal(t), zcerr.Invalid, []string{"of a file that has 10"})
		other.works(t)
	}
}

// Case 39: a stream that is shorter or longer than what was declared is refused, and nothing of it stays.
func TestCase39StreamOfTheWrongLength(t *testing.T) {
	p, other := withBystander(t)
	m := sealed(t)
	var all []byte
	for i := range m.Data {
		b := make([]byte, m.Manifest.Tensors[i].Bytes())
		if _, err := m.Data[i].ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	frame := sourceFrame('B', make([]uint64, len(m.Data))...)
	long := append(bytes.Clone(all), "and more"...)
	for _, tt := range []struct {
		name string
		verb string
		send []byte
		want string
	}{
		{"short", "put ", all[:len(all)-1], "end inside tensor"},
		{"nothing", "put ", nil, "end inside tensor"},
		{"long", "put ", long, "more bytes came"},
		{"a short frame", "sources ", append(bytes.Clone(frame), all[:len(all)-1]...), "end inside tensor"},
		{"a long frame", "sources ", append(append(bytes.Clone(frame), long...), sourceFrame('E')...), "is no frame"},
		{"no end", "sources ", append(bytes.Clone(frame), all...), "ended before all"},
		{"an end too early", "sources ", sourceFrame('E'), "commit before all bytes"},
		{"a row twice", "sources ", append(append(append(bytes.Clone(frame), all...), frame...), all...), "came twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := beginPut(t, p)
			c := rawUnix(t, p, tt.verb+o.plan.Ticket)
			_, _ = c.Write(tt.send) // the daemon may close before all is sent
			_ = c.CloseWrite()
			refused(t, o.refusal(t), zcerr.Invalid, []string{tt.want})
			other.works(t)
		})
	}
}

// halfPut sends a part of a put's bytes and keeps the rest.
type halfPut struct {
	Socket string
	Bytes  int
}

var halfDef = worker.Define("e2e.half", func(context.Context, int) (worker.Actor[halfPut, int], error) {
	return worker.Func[halfPut, int](func(ctx context.Context, j halfPut) (int, error) {
		c, err := client.Dial(ctx, client.Options{Socket: j.Socket})
		if err != nil {
			return 0, err
		}
		sent := make(chan int, 1)
		n := 0
		draft, _, err := pipeline.Describe(&Target{nn.NewLinear(1024, 1024, nn.Seed(7))}, pipeline.PutOptions{})
		if err != nil {
			return 0, err
		}
		for i := range draft.Tensors {
			draft.Tensors[i].Data = &stalling{n: &n, at: j.Bytes, reached: sent}
		}
		go c.Put(context.Background(), "m", draft, client.PutOptions{})
		return <-sent, nil
	}), nil
})

// stalling is a source of zeros that ends nowhere, and gives no more after at bytes.
type stalling struct {
	n, at   interface{}
	reached chan int
}

func (s *stalling) ReadAt(b []byte, off int64) (int, error) {
	n, at := s.n.(*int), s.at.(int)
	if len(b) >= 4<<10 { // not a sample
		if *n += len(b); *n > at {
			select {
			case s.reached <- *n - len(b):
			default:
			}
			select {}
		}
	}
	clear(b)
	return len(b), nil
}

// Case 02: a client that is killed in the middle of a put leaves nothing: its memory is back, and its name is free.
func TestCase02ClientKilledMidPut(t *testing.T) {
	p, mount := ownMount(t, "size=64m,mode=0700")
	put(t, p, "other", &Target{nn.NewLinear(64, 64, nn.Seed(1))})
	kills := 6
	if os.Getenv("ZCSTORE_SOAK") != "" {
		kills = 1000
	}
	before := statfsUsed(t, mount)
	for range kills {
		w, err := worker.Start(ctx, halfDef, 0, worker.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Call(ctx, halfPut{p.socket, rand.IntN(4 << 20)}); err != nil {
			t.Fatal(err)
		}
		if st := status(t, p); st.OpenPuts != 1 {
			t.Errorf("%d puts are open", st.OpenPuts)
		}
		if err := syscall.Kill(w.Workers()[0].PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for status(t, p).OpenPuts > 0 || statfsUsed(t, mount) != before {
			if time.Since(begin) > 5*time.Second {
				t.Fatalf("%d puts are open, %d bytes more are used", status(t, p).OpenPuts, statfsUsed(t, mount)-before)
			}
		}
		put(t, p, "m", &Target{nn.NewLinear(32, 32, nn.Seed(2))})
		if _, err := p.c.Remove(ctx, "m", true); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
	}
}

// Case 43: a daemon whose files may not be large refuses what does not fit, and lives.
func TestCase43FileSizeLimit(t *testing.T) {
	p := start(t)
	if err := unix.Prlimit(p.daemon.PID(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}, nil); err != nil {
		t.Skipf("the daemon's limit cannot be set here: %v", err)
	}
	_, err := pipeline.Put(ctx, p.c, "m", &Target{nn.NewLinear(1024, 1024, nn.Seed(1))}, pipeline.PutOptions{})
	refused(t, err, zcerr.NoSpace, []string{"4.0 MiB needed", "RLIMIT_FSIZE", "1.0 MiB", "LimitFSIZE"})
	put(t, p, "m", &Target{nn.NewLinear(64, 64, nn.Seed(1))})
}

// memoryGroup makes a memory cgroup with a limit below this process's own, or skips with the reason.
func memoryGroup(t *testing.T, limit int) string {
	t.Helper()
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skipf("no cgroups: %v", err)
	}
	own := ""
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && strings.Contains(","+parts[1]+",", ",memory,") {
			own = parts[2]
		}
	}
	if own == "" {
		t.Skip("no memory controller of cgroups version 1 here")
	}
	dir := filepath.Join("/sys/fs/cgroup/memory", own, fmt.Sprintf("zcstore-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("a memory cgroup cannot be made here: %v", err)
	}
	t.Cleanup(func() {
		for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(10 * time.Millisecond) {
			if err = os.Remove(dir); err == nil {
				return
			}
		}
		t.Errorf("remove the cgroup: %v", err)
	})
	if err := os.WriteFile(filepath.Join(dir, "memory.limit_in_bytes"), fmt.Append(nil, limit), 0); err != nil {
		t.Skipf("a memory limit cannot be set here: %v", err)
	}
	return dir
}

// Case 40: near the limit of its memory cgroup the daemon refuses, with the group, what is needed and what there is; nobody is
// killed.
func TestCase40MemoryCgroup(t *testing.T) {
	if testrace.Enabled {
		t.Skip("the race detector's own memory grows past any admission, and a group of 64 MiB kills for it")
	}
	group := memoryGroup(t, 64<<20)
	p := start(t)
	t.Cleanup(p.daemon.Kill) // before its group goes
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, p.daemon.PID()), 0); err != nil {
		t.Skipf("the daemon cannot be moved: %v", err)
	}
	linear := func(seed uint64, n int) *Target { return &Target{nn.NewLinear(1024, n, nn.Seed(seed))} }
	_, err := pipeline.Put(ctx, p.c, "big", linear(1, 25<<10), pipeline.PutOptions{})
	refused(t, err, zcerr.NoSpace, []string{"needed", "free in memory cgroup", "zcstore-test-", "of 64.0 MiB", "MemoryMax"})
	stored := 0
	for i := range uint64(20) {
		_, err := pipeline.Put(ctx, p.c, fmt.Sprintf("m%d", i), linear(i, 2<<10), pipeline.PutOptions{}) // 8 MiB each
		if err != nil {
			refused(t, err, zcerr.NoSpace, []string{"free in memory cgroup"})
			break
		}
		stored++
	}
	if stored < 3 || stored > 7 {
		t.Errorf("%d puts of 8 MiB fitted into 64 MiB", stored)
	}
	// Removing makes room again.
	if _, err := p.c.Remove(ctx, "m0", true); err != nil {
		t.Fatal(err)
	}
	put(t, p, "again", linear(99, 1<<10)) // half as large: the daemon itself has grown meanwhile
	control, err := os.ReadFile(filepath.Join(group, "memory.oom_control"))
	if err != nil || !strings.Contains(string(control), "oom_kill 0") {
		t.Errorf("out-of-memory kills: %q, %v", control, err)
	}
}

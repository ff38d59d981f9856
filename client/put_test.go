package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// inFile moves a draft's bytes into one file, which the daemon can be passed. The first skip bytes belong to nobody.
func inFile(t testing.TB, d *manifest.Draft, parts [][]byte, skip int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weights")
	all := make([]byte, skip)
	for _, b := range parts {
		all = append(all, b...)
	}
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	at := int64(skip)
	for i, b := range parts {
		d.Tensors[i].Data = io.NewSectionReader(f, at, int64(len(b)))
		at += int64(len(b))
	}
}

// The same model has the same digest and the same bytes, however it was put.
func TestOneDigestWhicheverWayItIsPut(t *testing.T) {
	stream := func(c *client.Client, d *manifest.Draft, parts [][]byte) (*zcstorev1.PutDone, error) {
		order := rand.Perm(len(parts))
		var all []io.Reader
		for _, i := range order {
			all = append(all, bytes.NewReader(parts[i]))
			d.Tensors[i].Data = nil
		}
		return c.PutStream(ctx, "m", d, order, io.MultiReader(all...), client.PutOptions{})
	}
	ways := []struct {
		name string
		put  func(*client.Client, *manifest.Draft, [][]byte) (*zcstorev1.PutDone, error)
	}{
		{"bytes", func(c *client.Client, d *manifest.Draft, _ [][]byte) (*zcstorev1.PutDone, error) {
			return c.Put(ctx, "m", d, client.PutOptions{})
		}},
		{"file", func(c *client.Client, d *manifest.Draft, parts [][]byte) (*zcstorev1.PutDone, error) {
			inFile(t, d, parts, 1000)
			return c.Put(ctx, "m", d, client.PutOptions{})
		}},
		{"file and bytes", func(c *client.Client, d *manifest.Draft, parts [][]byte) (*zcstorev1.PutDone, error) {
			last := d.Tensors[1].Data
			inFile(t, d, parts, 0)
			d.Tensors[1].Data = last
			return c.Put(ctx, "m", d, client.PutOptions{})
		}},
		{"stream", stream},
	}
	for _, model := range []struct {
		name string
		make func() (*manifest.Draft, [][]byte)
	}{
		{"all different", func() (*manifest.Draft, [][]byte) { return draft(1, 5, 300_000) }},
		{"small", func() (*manifest.Draft, [][]byte) { return draft(2, 5, 1000) }},
		{"two equal, so that a stream is told again", func() (*manifest.Draft, [][]byte) {
			d, parts := draft(3, 5, 300_000)
			copy(parts[3], parts[0])
			return d, parts
		}},
		{"two that differ only where nobody looks", func() (*manifest.Draft, [][]byte) {
			d, parts := draft(4, 5, 300_000)
			copy(parts[3], parts[0])
			parts[3][100_000]++
			return d, parts
		}},
	} {
		t.Run(model.name, func(t *testing.T) {
			d, want := model.make()
			s, err := d.Seal(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, way := range ways {
				for _, stored := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, part of it stored %v", way.name, stored), func(t *testing.T) {
						c, _, _ := daemonAndClient(t)
						shared := uint64(0)
						if stored {
							other, parts := draft(9, 2, len(want[0]))
							copy(parts[1], want[0])
							if _, err := c.Put(ctx, "other", other, client.PutOptions{}); err != nil {
								t.Fatal(err)
							}
							if len(want[0]) >= 64<<10 {
								shared = uint64(len(want[0]))
							}
						}
						d, _ := model.make()
						done, err := way.put(c, d, want)
						if err != nil {
							t.Fatal(err)
						}
						if got := client.Digest(done.Version.Digest); got != s.Digest || done.SharedBytes != shared || done.Existed {
							t.Errorf("digest %v, want %v; shared %d, want %d", got, s.Digest, done.SharedBytes, shared)
						}
						m, err := c.Attach(ctx, "m")
						if err != nil {
							t.Fatal(err)
						}
						same(t, m, want)
						m.Close()
						if v, err := c.Verify(ctx, "m"); err != nil || len(v.Damaged) > 0 {
							t.Errorf("verify: %v, %v", v, err)
						}
						// What is not stored twice is not held twice: the kernel's count is that of the sizes.
						st, err := c.Status(ctx)
						if err != nil || st.OpenPuts != 0 {
							t.Errorf("%v, %v", st, err)
						}
						var sizes uint64
						for _, sg := range done.Version.Segments {
							sizes += sg.UsedBytes
						}
						if sizes != done.Version.TensorBytes {
							t.Errorf("segments hold %d of the version's %d bytes", sizes, done.Version.TensorBytes)
						}
					})
				}
			}
		})
	}
}

func TestStreamOfTheWrongLength(t *testing.T) {
	c, _, _ := daemonAndClient(t)
	d, parts := draft(1, 2, 300_000)
	all := slicesJoin(parts)
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"short", all[:len(all)-1], "t0001"},
		{"empty", nil, "t0000"},
		{"long", append(all[:len(all):len(all)], 0), "follow after the last tensor"},
	} {
		_, err := c.PutStream(ctx, "m", d, []int{0, 1}, bytes.NewReader(tt.b), client.PutOptions{})
		if !errors.Is(err, zcerr.Invalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	idle(t, c)
}

// What the caller's stream does is nothing that a put waits for once its context has ended.
func TestPutStreamThatHangs(t *testing.T) {
	c, _, _ := daemonAndClient(t)
	for _, at := range []int{0, 1000, 2000} { // 2000: all bytes, and no end
		d, parts := draft(1, 2, 1000)
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(ctx)
		go func() {
			_, _ = w.Write(slicesJoin(parts)[:at])
			cancel()
		}()
		if _, err := c.PutStream(ctx, "m", d, []int{0, 1}, r, client.PutOptions{}); zcerr.KindOf(err) != zcerr.Canceled {
			t.Errorf("after %d bytes: %v", at, err)
		}
		w.Close()
	}
	idle(t, c)
}

func slicesJoin(parts [][]byte) []byte { return bytes.Join(parts, nil) }

// idle waits until no put is open, and checks that none has left anything.
func idle(t *testing.T, c *client.Client) {
	t.Helper()
	for {
		st, err := c.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.OpenPuts == 0 {
			if st.UsedBytes != 0 || st.Versions != 0 {
				t.Errorf("left: %v", st)
			}
			return
		}
	}
}

// A dry run says what the put then does, and leaves nothing.
func TestPlanPut(t *testing.T) {
	c, _, _ := daemonAndClient(t)
	d, _ := draft(1, 3, 300_000)
	plan, err := c.PlanPut(ctx, "m", d, client.PutOptions{})
	if err != nil || plan.SendBytes != 900_000 || plan.Shared != 0 || plan.NeedBytes < 900_000 || plan.FreeBytes < plan.NeedBytes || plan.FreeLimit == "" || plan.Existed {
		t.Errorf("%+v, %v", plan, err)
	}
	idle(t, c)
	if _, err := c.Put(ctx, "m", d, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if plan, err = c.PlanPut(ctx, "m", d, client.PutOptions{}); err != nil || !plan.Existed || plan.SendBytes != 0 {
		t.Errorf("%+v, %v", plan, err)
	}
	two, parts := draft(1, 3, 300_000)
	parts[1][7]++
	if plan, err = c.PlanPut(ctx, "m", two, client.PutOptions{}); err != nil || plan.Existed || plan.SendBytes != 300_000 || plan.Shared != 600_000 {
		t.Errorf("%+v, %v", plan, err)
	}
	if _, err = c.PlanPut(ctx, "m:v1", two, client.PutOptions{}); !errors.Is(err, zcerr.Conflict) {
		t.Errorf("a tag that is taken: %v", err)
	}
}

// Canceling while the daemon reads a file ends the put.
func TestCancelWhileTheDaemonReads(t *testing.T) {
	c, _, _ := daemonAndClient(t)
	d, parts := draft(1, 64, 1<<20)
	inFile(t, d, parts, 0)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if st, err := c.Status(ctx); err == nil && st.OpenPuts > 0 {
				cancel()
			}
		}
	}()
	_, err := c.Put(ctx, "m", d, client.PutOptions{})
	switch {
	case errors.Is(err, zcerr.Canceled):
		idle(t, c)
	case err != nil:
		t.Errorf("got %v", err)
	default:
		t.Log("the put was faster than its end")
	}
}

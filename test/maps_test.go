package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
)

var pid = os.Getpid()

// Probe is what a worker found out about itself: what it read, where its weights lie, what the kernel says of the mappings.
type Probe struct {
	Sum      uint64              // of every byte of every tensor
	Segments []SegmentProbe      // that the model has
	Maps     []Mapping           // of files in the segment directory
	Params   map[string][]uint64 // address and length of each weight that the pipeline computes on
}

// SegmentProbe is a segment as the worker sees it through its mapping.
type SegmentProbe struct {
	Inode  uint64
	Bytes  int
	SHA256 string
}

// Mapping is an entry of /proc/self/smaps.
type Mapping struct {
	From, To  uint64
	Perms     string
	Inode     uint64
	Path      string
	RSS       int // kB, as all that follow
	PSS       int
	Anonymous int
}

// readSmaps parses smaps.
func readSmaps(b []byte) ([]Mapping, error) {
	var all []Mapping
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) >= 5 && strings.Contains(f[0], "-") {
			from, to, _ := strings.Cut(f[0], "-")
			var m Mapping
			var err1, err2, err3 error
			m.From, err1 = strconv.ParseUint(from, 16, 64)
			m.To, err2 = strconv.ParseUint(to, 16, 64)
			m.Inode, err3 = strconv.ParseUint(f[4], 10, 64)
			if err := errors.Join(err1, err2, err3); err != nil {
				return nil, err
			}
			m.Perms = f[1]
			if len(f) > 5 {
				m.Path = strings.Join(f[5:], " ")
			}
			all = append(all, m)
			continue
		}
		if len(f) == 3 && f[2] == "kB" && len(all) > 0 {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				return nil, err
			}
			switch m := &all[len(all)-1]; f[0] {
			case "Rss:":
				m.RSS = n
			case "Pss:":
				m.PSS = n
			case "Anonymous:":
				m.Anonymous = n
			}
		}
	}
	return all, sc.Err()
}

// mapsBelow is the mappings of files in dir.
func mapsBelow(dir, smaps string) ([]Mapping, error) {
	b, err := os.ReadFile(smaps)
	if err != nil {
		return nil, err
	}
	all, err := readSmaps(b)
	if err != nil {
		return nil, err
	}
	var out []Mapping
	for _, m := range all {
		if strings.HasPrefix(m.Path, dir+"/") {
			out = append(out, m)
		}
	}
	return out, nil
}

// ask answers a question about the worker.
func (w *actor) ask(ctx context.Context, op string) (Answer, error) {
	a := Answer{PID: pid}
	var err error
	switch op {
	case "hello":
	case "reload": // attach again, as after a restart of the daemon
		_ = w.m.Close()
		err = w.load(ctx)
	case "close":
		err = w.m.Close()
	case "sum": // read every byte
		a.Probe = &Probe{}
		for row := range w.m.Table().Tensors() {
			v, _, err := w.m.Tensor(row)
			if err != nil {
				return a, err
			}
			for _, b := range v.Data {
				a.Probe.Sum += uint64(b)
			}
		}
		for _, s := range w.m.Segments() {
			sum := sha256.Sum256(s.Bytes) // header and padding too
			a.Probe.Segments = append(a.Probe.Segments, SegmentProbe{Inode: s.Inode, Bytes: len(s.Bytes), SHA256: hex.EncodeToString(sum[:])})
		}
	case "maps":
		a.Probe = &Probe{Params: map[string][]uint64{}}
		for i, m := range w.p.modules() {
			addresses(m, strconv.Itoa(i), a.Probe.Params)
		}
		a.Probe.Maps, err = mapsBelow(w.args.Dir, "/proc/self/smaps")
	default:
		err = fmt.Errorf("op %q", op)
	}
	return a, err
}

// addresses notes where the weights of a module lie.
func addresses(m models.Module, path string, into map[string][]uint64) {
	spec := m.Spec()
	for _, p := range spec.Params {
		into[path+"."+p.Name] = []uint64{addressOf(p.Tensor.Data), uint64(len(p.Tensor.Data))}
	}
	for _, c := range spec.Children {
		addresses(c.Module, path+"."+c.Name, into)
	}
}

// copyWeights makes the worker one that does not share, in one of several ways.
func (w *actor) copyWeights() error {
	copyOf := func(b []byte) ([]byte, error) { return bytes.Clone(b), nil }
	switch w.args.Copy {
	case "":
		return nil
	case "heap", "heap and detach":
	case "private mapping":
		var err error
		if copyOf, err = w.privately(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("no way to copy is called %q", w.args.Copy)
	}
	var refill func(m models.Module) error
	refill = func(m models.Module) error {
		spec := m.Spec()
		if len(spec.Params) > 0 {
			views := map[string]tensor.View{}
			for _, p := range spec.Params {
				data, err := copyOf(p.Tensor.Data)
				if err != nil {
					return err
				}
				if views[p.Name], err = tensor.New(p.Tensor.DType, p.Tensor.Shape, data); err != nil {
					return err
				}
			}
			if err := nn.LoadStateDict(m, "", func(name string) (tensor.View, bool) { v, ok := views[name]; return v, ok }); err != nil {
				return err
			}
		}
		for _, c := range spec.Children {
			if err := refill(c.Module); err != nil {
				return err
			}
		}
		return nil
	}
	for _, m := range w.p.modules() {
		if err := refill(m); err != nil {
			return err
		}
	}
	if w.args.Copy == "heap and detach" {
		return w.m.Close()
	}
	return nil
}

// privately maps the segments again, writable and private, writes to every page, and detaches from the shared ones: what it
// returns finds the private bytes of shared ones.
func (w *actor) privately() (func([]byte) ([]byte, error), error) {
	files, err := filepath.Glob(w.args.Dir + "/*")
	if err != nil {
		return nil, err
	}
	var shared, private [][]byte
	for _, s := range w.m.Segments() {
		for _, path := range files {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			var st syscall.Stat_t
			if err = syscall.Fstat(int(f.Fd()), &st); err == nil && st.Ino == s.Inode {
				var p []byte
				if p, err = syscall.Mmap(int(f.Fd()), 0, len(s.Bytes), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE); err == nil {
					for i := 0; i < len(p); i += 4096 {
						p[i]++
						p[i]--
					}
					shared, private = append(shared, s.Bytes), append(private, p)
				}
			}
			f.Close()
			if err != nil {
				return nil, err
			}
		}
	}
	w.keep = private
	return func(b []byte) ([]byte, error) {
		for i, s := range shared {
			if at := addressOf(b) - addressOf(s); at < uint64(len(s)) {
				return private[i][at : at+uint64(len(b))], nil
			}
		}
		return nil, errors.New("the weight is in no segment")
	}, nil
}

// checkShared says everything that speaks against n workers computing on one copy of the weights. sums and probes are what
// the workers answered to "sum" and, after that, to "maps".
func checkShared(sums, probes []Answer, wantSum uint64) (wrong []string, figures string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	segments := sums[0].Probe.Segments
	if len(segments) == 0 {
		bad("worker %d has no segment", sums[0].PID)
	}
	for _, a := range sums {
		if a.Probe.Sum != wantSum {
			bad("worker %d summed its weights to %d, put was %d", a.PID, a.Probe.Sum, wantSum)
		}
		if fmt.Sprint(a.Probe.Segments) != fmt.Sprint(segments) {
			bad("worker %d has segments %v, worker %d has %v", a.PID, a.Probe.Segments, sums[0].PID, segments)
		}
	}
	for _, s := range segments {
		pss := 0
		for _, a := range probes {
			mapped := 0
			for _, m := range a.Probe.Maps {
				if m.Inode != s.Inode {
					continue
				}
				mapped++
				pss += m.PSS
				if m.Perms != "r--s" {
					bad("worker %d maps segment %d as %s", a.PID, s.Inode, m.Perms)
				}
				if m.Anonymous != 0 {
					bad("worker %d has %d kB of its own (Anonymous) in segment %d", a.PID, m.Anonymous, s.Inode)
				}
			}
			if mapped != 1 {
				bad("worker %d maps segment %d %d times", a.PID, s.Inode, mapped)
			}
		}
		// The kernel counts whole pages, and cuts each worker's figure to whole kB: up to 1 kB is lost in each.
		pages := float64((s.Bytes+4095)/4096*4096) / 1024
		off := float64(pss) - pages
		figures += fmt.Sprintf("segment of %d bytes (%.0f kB in pages): PSS of %d workers %d kB, %+.2f %%; ", s.Bytes, pages, len(probes), pss, 100*off/pages)
		if math.Abs(off) > max(0.02*pages, float64(len(probes))) {
			bad("the PSS of segment %d adds up to %d kB over %d workers; it has %.0f kB", s.Inode, pss, len(probes), pages)
		}
	}
	for _, a := range probes {
		outside := 0
		for _, p := range a.Probe.Params {
			in := false
			for _, m := range a.Probe.Maps {
				in = in || m.Perms == "r--s" && p[0] >= m.From && p[0]+p[1] <= m.To
			}
			if !in {
				outside++
			}
		}
		if len(a.Probe.Params) == 0 || outside > 0 {
			bad("worker %d computes on %d of %d weights outside of shared segments", a.PID, outside, len(a.Probe.Params))
		}
	}
	return wrong, figures
}

// sumOf is the sum of every weight byte of modules, each tensor once.
func sumOf(mods []models.Module) uint64 {
	sum := uint64(0)
	var walk func(m models.Module)
	walk = func(m models.Module) {
		spec := m.Spec()
		for _, p := range spec.Params {
			for _, b := range p.Tensor.Data {
				sum += uint64(b)
			}
		}
		for _, c := range spec.Children {
			walk(c.Module)
		}
	}
	for _, m := range mods {
		walk(m)
	}
	return sum
}

func TestReadSmaps(t *testing.T) {
	got, err := readSmaps([]byte(`7f0000000000-7f0000003000 r--s 00000000 00:17 42                         /dev/shm/zc dir/seg-1
Size:                 12 kB
Rss:                   8 kB
Pss:                   2 kB
Pss_Dirty:             1 kB
Anonymous:             0 kB
VmFlags: rd mr me ms dd
7f0000003000-7f0000004000 rw-p 00000000 00:00 0
Pss:                   4 kB
Anonymous:             4 kB
`))
	want := []Mapping{{From: 0x7f0000000000, To: 0x7f0000003000, Perms: "r--s", Inode: 42, Path: "/dev/shm/zc dir/seg-1", RSS: 8, PSS: 2},
		{From: 0x7f0000003000, To: 0x7f0000004000, Perms: "rw-p", PSS: 4, Anonymous: 4}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if own, err := mapsBelow("/", "/proc/self/smaps"); err != nil || len(own) != 0 {
		t.Errorf("%v, %v", own, err) // no path begins with two slashes
	}
}

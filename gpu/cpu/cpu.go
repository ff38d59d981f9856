// Package cpu is the backend that is always there.
//
// Weights are used where they lie, in the shared segment; F16 and BF16 are widened inside the op, a piece at a time.
// Ops run on the calling goroutine and as many others as the device has threads, and are done when the call returns,
// which the contract of package gpu allows but no model may rely on.
//
// A device has a tier: kernels in assembly for AVX-512 or for AVX2, or plain Go ([Tiers]). It takes the fastest that the
// processor runs; $ZCSTORE_CPU names another.
//
// Every sum of a product has one order: the elements of a row from first to last, in one F32 accumulator, with one rounding
// for each element in the kernels and two in plain Go. So all tiers of kernels give the same bits. Sums of norms, means and
// softmax are F64 in plain Go, and F32 lane by lane in the kernels. Tiles and threads divide rows and columns, never a sum.
package cpu

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

func init() { gpu.Register(backend{}) }

type backend struct{}

func (backend) Name() string { return "cpu" }

func (backend) Open(o gpu.Options) (gpu.Device, error) { return New(o) }

// Device is the processor. Safe for concurrent use; all streams share its cores.
type Device struct {
	pool    gpu.Pool
	workers workers
	threads int
	k       *kernels  // nil: plain Go
	pack    pack.Form // gpu.Options.PackPrivately
	err     error     // of the environment; NewStream returns it
	watch   func(gpu.Op, time.Duration)
}

// New makes a device. Options.Threads 0 is $ZCSTORE_THREADS, and without that what GOMAXPROCS says, which Go takes from
// the affinity mask and the cgroup's limit.
func New(o gpu.Options) (*Device, error) { return NewTier(os.Getenv("ZCSTORE_CPU"), o) }

// NewTier is New with one of [Tiers]; "" is the fastest.
func NewTier(name string, o gpu.Options) (*Device, error) {
	n, err := threads(o.Threads)
	if err != nil {
		return nil, err
	}
	k, err := tier(name)
	if err != nil {
		return nil, err
	}
	d := newDevice(n, k, o.PackPrivately)
	d.watch = o.Watch
	return d, nil
}

// Default is the device that a program uses when it names none. It is not closed.
var Default = sync.OnceValue(func() *Device {
	n, err := threads(0)
	k, kerr := tier(os.Getenv("ZCSTORE_CPU"))
	d := newDevice(max(n, 1), k, 0)
	d.err = errors.Join(err, kerr)
	return d
})

func newDevice(threads int, k *kernels, form pack.Form) *Device {
	d := &Device{threads: threads, k: k, pack: form}
	d.workers.limit = threads - 1
	d.workers.spins = runtime.GOMAXPROCS(0) > 1
	return d
}

func threads(n int) (int, error) {
	if n < 0 {
		return 0, fmt.Errorf("%d threads: want at least 1", n)
	}
	if n > 0 {
		return n, nil
	}
	if v := os.Getenv("ZCSTORE_THREADS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return 0, fmt.Errorf("ZCSTORE_THREADS=%q: want a number of threads, at least 1", v)
		}
		return n, nil
	}
	return runtime.GOMAXPROCS(0), nil
}

// Info implements gpu.Device.
func (d *Device) Info() gpu.Info {
	name := fmt.Sprintf("%s, %d threads", d.Tier(), d.threads)
	if d.pack != 0 {
		name += fmt.Sprintf(", weights packed privately as %v", d.pack)
	}
	return gpu.Info{Backend: "cpu", Name: name, Threads: d.threads}
}

// Tier names the instruction set that the device computes with: one of [Tiers].
func (d *Device) Tier() string {
	if d.k == nil {
		return "go"
	}
	return d.k.name
}

// NewStream implements gpu.Device.
func (d *Device) NewStream() (*gpu.Stream, error) {
	if d.err != nil {
		return nil, d.err
	}
	return d.pool.Get(d, func() (gpu.Queue, error) {
		if d.watch != nil {
			return watched{newQueue(d), d.watch}, nil
		}
		return newQueue(d), nil
	})
}

// Close implements gpu.Device.
func (d *Device) Close() error {
	d.workers.close()
	return d.pool.Close()
}

// Alloc implements gpu.Device: memory of the Go heap.
func (d *Device) Alloc(bytes int) (gpu.Buf, error) {
	if bytes < 0 || bytes > maxAlloc { // make would panic, where there is no memory to be had
		return nil, tooMuch(bytes)
	}
	return &buf{d: d, f: make([]float32, (bytes+3)/4)}, nil
}

const maxAlloc = 1 << 40

func tooMuch(bytes int) error {
	return &gpu.OpError{Op: "alloc", Kind: gpu.ErrMemory, Reason: fmt.Sprintf("%d bytes", bytes)}
}

type buf struct {
	d      *Device
	f      []float32
	mapped []byte // what f lies in, when that is not the Go heap
}

func (b *buf) Device() gpu.Device { return b.d }
func (b *buf) Len() int           { return 4 * len(b.f) }

func (b *buf) Free() {
	b.f = nil
	b.unmap()
}

// weight is what this backend keeps with a gpu.Weight: the stored bytes as values. One of the two is set.
type weight struct {
	rows, cols int       // as stored; of the whole weight where packed
	form       pack.Form // of f32, which is panels; 0: plain
	size       pack.P16  // of the panels
	f32        []float32 // or panels of any form
	half       []uint16
	bf16       bool // half is BF16, else F16
	widen      func(uint16) float32
}

// Import implements gpu.Device. It never copies; F32 data has to lie on 4 bytes and 16-bit data on 2.
func (d *Device) Import(v tensor.View, role tensor.Role) (*gpu.Weight, error) {
	if v.Packed != nil {
		return gpu.ImportForm(d, v, role)
	}
	info, err := gpu.Describe(v, role)
	if err != nil {
		return nil, err
	}
	w := &weight{rows: info.N, cols: info.K}
	if role == tensor.LinearT {
		w.rows, w.cols = info.K, info.N
	}
	switch v.DType {
	case tensor.F32:
		w.f32, err = v.Float32s()
	case tensor.F16:
		w.half, err = v.Uint16s()
		w.widen = pack.WidenF16
	case tensor.BF16:
		w.half, err = v.Uint16s()
		w.widen, w.bf16 = widenBF16, true
	}
	if err != nil {
		return nil, &gpu.OpError{Op: "import", Kind: gpu.ErrUnsupported, Reason: err.Error(),
			Operands: []gpu.Operand{{Name: role.String(), Shape: v.Shape, DType: v.DType}}}
	}
	if d.pack != 0 && role != tensor.LookupLinear { // whose rows are looked up too
		if p, err := pack.Of(d.pack, v.DType, role, v.Shape); err == nil {
			return d.packed(p, v)
		}
	}
	info.Mode = gpu.ZeroCopy
	return gpu.NewWeight(d, info, w).InPlace(v.Data), nil
}

// packed is the weight as a private, packed copy.
func (d *Device) packed(p pack.P16, plain tensor.View) (w *gpu.Weight, err error) {
	defer region.Caught(region.On(), &err)
	panels, err := tensor.FromFloat32s(tensor.Shape{p.Bytes() / 4}, make([]float32, p.Bytes()/4))
	if err != nil {
		return nil, err
	}
	panels.DType, panels.Shape = p.Form.DType(), p.Shape()
	if err := p.Pack(panels.Data, plain.Data); err != nil {
		return nil, err
	}
	return d.importPacked(panels, gpu.Panels(p.Form), p.N, p.K, gpu.Private)
}

// ImportPacked implements gpu.PackedImporter. It never copies; the data has to lie on 4 bytes, and is read fastest on 64.
func (d *Device) ImportPacked(v tensor.View, layout gpu.Layout, n, k int) (*gpu.Weight, error) {
	return d.importPacked(v, layout, n, k, gpu.ZeroCopy)
}

func (d *Device) importPacked(v tensor.View, layout gpu.Layout, n, k int, mode gpu.Mode) (*gpu.Weight, error) {
	info, err := gpu.DescribePacked(v, layout, n, k)
	if err != nil {
		return nil, err
	}
	form, err := pack.ParseForm(layout.Name)
	if err != nil {
		return nil, err
	}
	size, err := pack.Sized(form, n, k)
	if err != nil {
		return nil, err
	}
	lines := tensor.View{DType: tensor.F32, Shape: tensor.Shape{len(v.Data) / 4}, Data: v.Data} // of 4 bytes for an output
	f, err := lines.Float32s()
	if err != nil {
		return nil, &gpu.OpError{Op: "import", Kind: gpu.ErrUnsupported, Reason: err.Error(),
			Operands: []gpu.Operand{{Name: "packed weight", Shape: v.Shape, DType: v.DType}}}
	}
	info.Mode = mode
	return gpu.NewWeight(d, info, &weight{rows: n, cols: k, form: form, size: size, f32: f}).InPlace(v.Data), nil
}

// row is a stored row as F32: the bytes themselves, or widened into the start of tmp.
func (w *weight) row(i int, tmp []float32) []float32 {
	if w.half == nil {
		return w.f32[i*w.cols : (i+1)*w.cols]
	}
	tmp = tmp[:w.cols]
	for j, h := range w.half[i*w.cols : (i+1)*w.cols] {
		tmp[j] = w.widen(h)
	}
	return tmp
}

// panel is the lines of an output, from its own place in the first on.
func (w *weight) panel(n int) []float32 {
	return w.f32[n/lanes*w.size.PanelBytes()/4+n%lanes:]
}

// at is one element.
func (w *weight) at(i int) float32 {
	if w.half == nil {
		return w.f32[i]
	}
	return w.widen(w.half[i])
}

// vector is a gain or bias as F32, or nil. It widens into memory of its own when the weight is of 16 bits.
func vector(w *gpu.Weight, tmp *[]float32) []float32 {
	if w == nil {
		return nil
	}
	c := w.Data().(*weight)
	if c.half != nil {
		*tmp = grow(*tmp, c.cols)
	}
	return c.row(0, *tmp)
}

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

package cpu

import (
	"fmt"
	"strings"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
)

//go:generate go run ./internal/asmgen -isa avx512 -o kernels_avx512_amd64
//go:generate go run ./internal/asmgen -isa avx2 -o kernels_avx2_amd64

// kernels is what a tier has in assembly. Each function does a bounded piece of work: it cannot be preempted.
type kernels struct {
	name       string
	tileSet                                  // in F32
	bf16, int8 tileSet                       // of weights in these forms
	turnBlock  int                           // columns that turn takes at once
	width      int                           // F32 values in a register
	turn       func(*turn)                   // 16 rows into a panel
	acts       [gpu.Sigmoid + 1]func(*block) // made of the following six

	relu, geluErf, geluTanh, silu, sigmoid, tanh func(*block)

	widenBF16, widenF16 func(*widen)
	expRows, scaleRows  func(*block)
	normRow, addRow     func(*norm)
	read                func(*reading)
}

// tileSet is tiles of a product, of one form of the weights.
type tileSet struct {
	maxRows   int                    // of a tile of two panels, or of one where there is no such
	maxPanels int                    // 4, 2 or 1
	lineBytes int                    // of a row of x, for one line of a panel
	terms     int                    // multiply-adds of a lane in an instruction of the probe
	tiles     map[[2]int]func(*tile) // by rows and panels; gemm is made of it
	gemm      [13][5]func(*tile)     // [rows][panels], with holes
	row       func(*operand)         // makes a row of x what tiles take; nil: it is already
	peak      func(*peak)
}

// tiered is kernels with the tiles of a tier, and the tables filled by which kernels are called.
func (k kernels) tiered(name string, f32, bf16, int8 tileSet) *kernels {
	k.name, k.tileSet, k.bf16, k.int8 = name, f32, bf16, int8
	for _, p := range []*tileSet{&k.tileSet, &k.bf16, &k.int8} {
		for size, f := range p.tiles {
			p.gemm[size[0]][size[1]] = f
		}
	}
	k.acts = [...]func(*block){gpu.ReLU: k.relu, gpu.GELUErf: k.geluErf, gpu.GELUTanh: k.geluTanh, gpu.SiLU: k.silu, gpu.Tanh: k.tanh, gpu.Sigmoid: k.sigmoid}
	return &k
}

// of is the tiles for weights of a form; for 0, plain ones, in F32.
func (k *kernels) of(f pack.Form) *tileSet {
	switch f {
	case pack.BF16:
		return &k.bf16
	case pack.Int8:
		return &k.int8
	}
	return &k.tileSet
}

// tile is one product of a few rows with 1, 2 or 4 panels: see gemm in internal/asmgen. Distances are in bytes.
type tile struct {
	a     *float32 // the first element of the rows
	lda   int      // from row to row
	b     *float32 // panel 0: lines of 16 times 4 bytes
	panel int      // from panel to panel
	step  int      // from line to line; 64 where a panel is packed
	k     int      // lines
	lanes int      // columns of the last panel that there are, 1 to 16; the others are read and not written
	bias  *float32 // for each column, or nil
	res   *float32 // the first element of what is added at last, or nil
	ldres int
	c     *float32 // the first element of the result
	ldc   int
	rows  *rowScale // one for each row, in 8 bits
}

// rowScale is what 8 bits of a row of x mean: x = scale (q + less).
type rowScale struct {
	scale float32
	less  int32 // 0 down to -255
}

// operand is a row of x that becomes what tiles of a product take. What follows in dst up to a multiple of 16 columns is
// written, too.
type operand struct {
	src *float32
	dst *float32
	n   int
	row *rowScale
}

// turn is sixteen rows that become a panel: see turn in internal/asmgen.
type turn struct {
	src    *float32
	ld     int // bytes from row to row
	dst    *float32
	blocks int // of turnBlock(k) columns
}

// widen is 16-bit values that become F32, blocks times sixteen.
type widen struct {
	src    *uint16
	dst    *float32
	blocks int
}

// block is rows of values to do the same to. Distances are in bytes, rows and cols at least 1.
type block struct {
	dst, src     *float32
	lddst, ldsrc int
	rows, cols   int
	inv          *float32 // one for each row
	scale        float32
}

// norm is one row to normalise.
type norm struct {
	dst, src, res, gamma, beta *float32 // all but dst and src may be nil
	n                          int
	center                     int     // 1: subtract the mean
	part, eps                  float32 // 1/n
}

// reading is four places in memory to be read, n lines of 64 bytes each.
type reading struct {
	src   *float32
	apart int // bytes from place to place
	n     int
}

// peak is rounds of the probe, each of 48 instructions that multiply and add whole registers.
type peak struct{ n int }

// TierError is a tier that $ZCSTORE_CPU asks for and that there is not, here or at all.
type TierError struct {
	Tier string
	Have []string // that this processor can run, fastest first
}

// ErrorKind is the kind in the words of proto/zcerr.
func (e *TierError) ErrorKind() string { return "invalid" }

func (e *TierError) Error() string {
	return fmt.Sprintf("ZCSTORE_CPU=%q: this processor runs %s", e.Tier, strings.Join(e.Have, ", "))
}

// Tiers lists the instruction sets that this processor can run kernels for, fastest first. The last is always "go":
// plain Go.
func Tiers() []string {
	var names []string
	for _, k := range tiers {
		names = append(names, k.name)
	}
	return append(names, "go")
}

// tier is the kernels that a new device uses: those of the name, or for "" the fastest. nil is plain Go.
func tier(want string) (*kernels, error) {
	for _, k := range tiers {
		if want == "" || want == k.name {
			return k, nil
		}
	}
	if want == "" || want == "go" {
		return nil, nil
	}
	return nil, &TierError{Tier: want, Have: Tiers()}
}

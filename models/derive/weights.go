package derive

import (
	"fmt"
	"io"

	"github.com/zcstore/zcstore/models/pack"
)

// maxPanelBytes bounds a panel, which is made as one.
const maxPanelBytes = 64 << 20

const plainRemedy = "use the plain form: --form plain"

// packWeight gives the panels of a weight one after the other.
func packWeight(f pack.Form, s Source, data []byte) (Made, error) {
	p, err := pack.Of(f, s.DType, s.Role, s.Shape)
	if err == nil && len(data) != p.PlainBytes() {
		err = fmt.Errorf("%d bytes for %v %v", len(data), s.DType, s.Shape)
	}
	if err == nil && p.PanelBytes() > maxPanelBytes {
		err = fmt.Errorf("its %d inputs make panels of %d bytes, the most that are made have %d", p.K, p.PanelBytes(), maxPanelBytes)
	}
	if err != nil {
		return Made{}, refuse(s, err, plainRemedy)
	}
	return Made{f.DType(), p.Shape(), &panels{P16: p, plain: data, of: s}}, nil
}

// panels reads the panels of a weight. What is read in large pieces is made where it is wanted.
type panels struct {
	pack.P16
	plain []byte
	of    Source
	next  int    // panel
	buf   []byte // of one panel
	rest  []byte // of the last one that was made
}

func (r *panels) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		left := r.Panels() - r.next
		if left == 0 || r.PanelBytes() == 0 { // of a weight without inputs
			return 0, io.EOF
		}
		if n := min(len(b)/r.PanelBytes(), left); n > 0 {
			n *= r.PanelBytes()
			if err := r.make(b[:n]); err != nil {
				return 0, err
			}
			return n, nil
		}
		if r.buf == nil {
			r.buf = make([]byte, r.PanelBytes())
		}
		if err := r.make(r.buf); err != nil {
			return 0, err
		}
		r.rest = r.buf
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// make fills b with the next panels. Where a panel cannot be made, nothing was read.
func (r *panels) make(b []byte) error {
	n := len(b) / r.PanelBytes()
	if err := r.PackPanels(b, r.plain, r.next, r.next+n); err != nil {
		return refuse(r.of, err, plainRemedy)
	}
	r.next += n
	return nil
}

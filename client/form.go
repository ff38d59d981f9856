package client

import (
	"os"

	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/tensor"
)

// EnvForm is the form of programs that name none: plain, packed, bf16 or int8.
const EnvForm = "ZCSTORE_FORM"

// Form asks for the weights in a form: "plain", "packed", "bf16" or "int8". Without it the form is $ZCSTORE_FORM, else the
// default of the tag, else plain. The daemon makes a form when the first client asks for it, and all share what it made.
func Form(name string) AttachOption { return func(o *attachChoices) { o.form = name } }

// Tokenizers asks for the tables of the version's tokenizers, if it has any: they are used in place, and nothing is parsed.
func Tokenizers() AttachOption { return func(o *attachChoices) { o.tokenizers = true } }

// derivedForm is something that the daemon made of the version, mapped.
type derivedForm struct {
	form  derive.Form
	table *table.Table
	segs  []*shm.Mapping
}

// Form is the form of the weights that the model was attached in. Those that have no other form are plain in any.
func (m *Model) Form() string { return string(m.form) }

// FormSegments lists the mapped segments of what was made of the version: the weights in a form other than plain, the tables
// of tokenizers.
func (m *Model) FormSegments() []Segment {
	var out []Segment
	for _, f := range m.forms {
		for _, mp := range f.segs {
			out = append(out, Segment{Inode: mp.Inode(), Bytes: mp.Bytes()})
		}
	}
	return out
}

// asked is what has the daemon hand out the same again.
func (m *Model) asked() *zcstorev1.AttachOptions {
	o := &zcstorev1.AttachOptions{Form: string(m.form)}
	for _, f := range m.forms {
		o.Tokenizers = o.Tokenizers || f.form == derive.Tables
	}
	return o
}

// mapForms maps what follows the files of the version in a reply.
func (m *Model) mapForms(a *zcstorev1.Attached, files []*os.File) error {
	m.form = derive.Plain
	if a.Form != "" {
		m.form = derive.Form(a.Form)
	}
	for _, d := range a.Derived {
		if d.Fds < 1 || int(d.Fds) > len(files) {
			return zcerr.New(zcerr.Corrupt, "the daemon handed out %d files for the form %s, it says %d", len(files), d.Form, d.Fds)
		}
		own := files[:d.Fds]
		files = files[d.Fds:]
		mp, err := shm.MapIn(m.gate, own[0], int(d.TableBytes))
		if err != nil {
			return zcerr.New(zcerr.Corrupt, "table of the form %s: %w", d.Form, err)
		}
		m.maps = append(m.maps, mp)
		f := derivedForm{form: derive.Form(d.Form)}
		if f.table, err = table.Open(mp.Bytes()); err != nil {
			return zcerr.New(zcerr.Corrupt, "%w", err)
		}
		if f.table.Segments() != len(own)-1 {
			return zcerr.New(zcerr.Corrupt, "the form %s has %d segments, %d came", d.Form, f.table.Segments(), len(own)-1)
		}
		if f.segs, err = m.mapSegments(f.table, own[1:]); err != nil {
			return err
		}
		m.forms = append(m.forms, f)
	}
	if len(files) > 0 {
		return zcerr.New(zcerr.Corrupt, "%d files came that belong to nothing", len(files))
	}
	return nil
}

// derived is what was made of a tensor row, or of the value at a node of the tree; nil when there is nothing.
func (m *Model) derived(f *derivedForm, index int) (*tensor.Packed, error) {
	row, ok := f.table.Lookup(derive.Name(index))
	if !ok {
		return nil, nil
	}
	r, err := f.table.Tensor(row)
	if err != nil {
		return nil, zcerr.New(zcerr.Corrupt, "%w", err)
	}
	p := &tensor.Packed{DType: r.DType, Shape: r.Shape}
	p.Layout, p.Version = f.form.Layout()
	if r.Bytes > 0 {
		p.Data = bytesOf(f.segs, r)
	}
	return p, nil
}

// packed is row in the form of the weights. A weight that the form has to be made of, and is not, is an error: nobody
// computes on something else than what was asked for without being told.
func (m *Model) packed(row int, r table.Tensor) (*tensor.Packed, error) {
	if !m.form.OfTensor(r.Role, r.Shape) {
		return nil, nil
	}
	for i := range m.forms {
		if m.forms[i].form != m.form {
			continue
		}
		if p, err := m.derived(&m.forms[i], row); p != nil || err != nil {
			return p, err
		}
	}
	return nil, zcerr.New(zcerr.Corrupt, "tensor row %d has no form %s", row, m.form)
}

// TokenizerTables is what the daemon compiled the value at a node of the tree to, for tokenizer.Open: shared pages, as the
// tensors are. It is nil when the node is no tokenizer, and when the model was attached without [Tokenizers]. Errors: Corrupt,
// Canceled, Fault.
func (m *Model) TokenizerTables(node table.Node) (b []byte, err error) {
	err = m.Read(func() error {
		for i := range m.forms {
			if m.forms[i].form != derive.Tables {
				continue
			}
			p, err := m.derived(&m.forms[i], node.Index())
			if p != nil {
				b = p.Data
			}
			return err
		}
		return nil
	})
	return b, err
}

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm/tensor"
)

const showHelp = `show tells what one version is: its names, the segments its bytes lie in, the tree of its modules and values,
and its tensors. SEGMENT is the segment's number and, after #, the offset in its file. A tensor with several names is
stored once. Forms are what the daemon made of it for workers and still has in memory. Long lists are cut, unless --all. A version that is only on disk is loaded for this.

With -o json nothing is cut, but of values over 64 KiB there is only the size and the SHA-256.`

const showExample = `  zcctl show minilm
  zcctl show minilm:v1 --all
  zcctl show minilm -o json | jq -r '.tensors[] | select(.dtype == "F32") | .names[0]'`

const (
	showRows    = 24       // of each list, without --all
	showValue   = 64 << 10 // bytes of a value in JSON
	showContent = 56       // columns of a value or config in the tree

)

type showJSON struct {
	Schema  int         `json:"schema"`
	Version versionInfo `json:"version"`
	Tree    *treeNode   `json:"tree"`
	Tensors []tensorRow `json:"tensors"`
}

// treeNode is a node of the tree; which fields it has depends on its kind.
type treeNode struct {
	Key      string          `json:"key"`
	Kind     string          `json:"kind"` // module, list, dict, value, ref
	Impl     string          `json:"impl,omitempty"`
	Config   json.RawMessage `json:"config,omitempty"`
	Params   []paramRow      `json:"params,omitempty"`
	Value    *valueBody      `json:"value,omitempty"`
	Ref      string          `json:"ref,omitempty"` // path of the module
	Children []*treeNode     `json:"children,omitempty"`
}

type paramRow struct {
	Name   string `json:"name"`
	Tensor int    `json:"tensor"` // index into tensors
}

// valueBody is a value: its content as JSON, text or base64, whichever it is, unless it is large.
type valueBody struct {
	MediaType string          `json:"media_type"`
	SizeBytes int             `json:"size_bytes"`
	SHA256    string          `json:"sha256"`
	JSON      json.RawMessage `json:"json,omitempty"`
	Text      string          `json:"text,omitempty"`
	Base64    []byte          `json:"base64,omitempty"`
}

type tensorRow struct {
	Names     []string `json:"names"`
	DType     string   `json:"dtype"`
	Shape     []int    `json:"shape"`
	Role      string   `json:"role"`
	SizeBytes int      `json:"size_bytes"`
	SHA256    string   `json:"sha256"`
	Segment   int      `json:"segment"` // index into version.segments
	Offset    uint64   `json:"offset"`  // in the segment's file
}

func showCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "show REF", Short: "Show one version: tree, tensors, segments", GroupID: groupModels,
		Long: showHelp, Example: showExample, Args: args(false, "REF"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd, func(ctx context.Context, c *client.Client) error { return a.show(ctx, c, args[0], all) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "do not cut lists")
	return cmd
}

func (a *app) show(ctx context.Context, c *client.Client, target string, all bool) error {
	v, err := c.Show(ctx, target)
	if err != nil {
		return err
	}
	m, err := c.Attach(ctx, exactRef(v), client.Form("plain")) // not target: a tag could have moved since
	if err != nil {
		return err
	}
	defer m.Close()
	if !v.Resident { // it was only on disk: now it has segments
		if v, err = c.Show(ctx, exactRef(v)); err != nil {
			return err
		}
	}
	tensors, err := readTensors(m.Table())
	if err != nil {
		return zcerr.Wrap("show", target, err)
	}
	if a.json() {
		tree, err := readTree(m.Table().Root(), tensors)
		if err != nil {
			return zcerr.Wrap("show", target, err)
		}
		return a.emit(showJSON{Schema: schema, Version: infoOf(v), Tree: tree, Tensors: tensors})
	}
	limit := showRows
	if all {
		limit = -1
	}
	if err := a.printHeader(v); err != nil {
		return err
	}
	if err := printTree(a.stdout, m.Table().Root(), tensors, limit); err != nil {
		return err
	}
	return printTensors(a.stdout, tensors, limit)
}

func corrupt(err error) error {
	return zcerr.New(zcerr.Corrupt, "%w", err).WithHint("put the model again")
}

func readTensors(t *table.Table) ([]tensorRow, error) {
	rows := make([]tensorRow, t.Tensors())
	for i := range rows {
		r, err := t.Tensor(i)
		if err != nil {
			return nil, corrupt(err)
		}
		names, err := t.TensorNames(i)
		if err != nil {
			return nil, corrupt(err)
		}
		rows[i] = tensorRow{names, r.DType.String(), some(r.Shape), r.Role.String(), r.Bytes, r.SHA256.String(), r.Segment, r.Offset}
	}
	return rows, nil
}

func readTree(n table.Node, tensors []tensorRow) (*treeNode, error) {
	out := &treeNode{Key: n.Key(), Kind: n.Kind().String(), Impl: n.Impl(), Ref: n.Ref()}
	if c := n.Config(); len(c) > 0 {
		if !json.Valid(c) {
			return nil, corrupt(fmt.Errorf("the config of %q is no JSON", n.Key()))
		}
		out.Config = bytes.Clone(c)
	}
	for k := range n.Params() {
		name, row, err := n.Param(k)
		if err != nil {
			return nil, corrupt(err)
		}
		out.Params = append(out.Params, paramRow{name, row})
	}
	if n.Kind() == manifest.Value {
		row, large, err := valueRow(n, tensors)
		if err != nil {
			return nil, err
		}
		if large {
			out.Value = &valueBody{MediaType: n.MediaType(), SizeBytes: row.SizeBytes, SHA256: row.SHA256}
		} else {
			out.Value = readValue(n.MediaType(), n.Value())
		}
	}
	for _, child := range n.Children() {
		c, err := readTree(child, tensors)
		if err != nil {
			return nil, err
		}
		out.Children = append(out.Children, c)
	}
	return out, nil
}

// valueRow is the row that holds the bytes of a large value.
func valueRow(n table.Node, tensors []tensorRow) (r tensorRow, large bool, err error) {
	row, large := n.ValueRow()
	switch {
	case !large:
		return tensorRow{}, false, nil
	case row >= len(tensors):
		return tensorRow{}, false, corrupt(fmt.Errorf("the value %q points at tensor %d of %d", n.Key(), row, len(tensors)))
	}
	return tensors[row], true, nil
}

func readValue(mediaType string, b []byte) *valueBody {
	sum := manifest.Digest(sha256.Sum256(b))
	v := &valueBody{MediaType: mediaType, SizeBytes: len(b), SHA256: sum.String()}
	switch {
	case len(b) > showValue:
	case isJSON(mediaType) && json.Valid(b):
		v.JSON = bytes.Clone(b)
	case utf8.Valid(b):
		v.Text = string(b)
	default:
		v.Base64 = bytes.Clone(b)
	}
	return v
}

func isJSON(mediaType string) bool {
	return mediaType == "application/json" || strings.HasSuffix(mediaType, "+json")
}

func (a *app) printHeader(v *zcstorev1.VersionInfo) error {
	g := newGrid(a.stdout, "")
	g.row("name", v.Name)
	g.row("tags", strings.Join(tagWords(v), ", "))
	g.row("digest", client.Digest(v.Digest))
	g.row("kind", v.Kind)
	g.row("tensors", fmt.Sprintf("%d, %s", v.Tensors, units.Bytes(v.TensorBytes)))
	g.row("table", units.Bytes(v.TableBytes))
	g.row("created", age(v.CreatedUnixMs)+" ago")
	g.row("holders", v.Holders)
	said := ""
	for _, s := range v.Segments {
		if s.Guarantee != said {
			said = s.Guarantee
			g.row("weights", said)
			g.row("kept", restartWords(s.Guards))
		}
	}
	if v.OnDisk {
		g.row("disk", "all of it is on disk, too, and survives a reboot")
	}
	if v.Pinned {
		g.row("memory", "pinned: it stays in memory")
	}
	if err := g.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, "\nSegments")
	g = newGrid(a.stdout, "  ", "#", "ID", "SIZE", "USED HERE", "INODE", "VERSIONS", "PAGES")
	for i, s := range v.Segments {
		g.row(i, s.Id, units.Bytes(s.SizeBytes), units.Bytes(s.UsedBytes), s.Inode, s.Versions, pageWords(s.Guards, s.SizeBytes))
	}
	if err := g.flush(); err != nil || len(v.Forms) == 0 {
		return err
	}
	fmt.Fprintln(a.stdout, "\nForms, made of it and in memory")
	g = newGrid(a.stdout, "  ", "FORM", "BYTES", "HOLDERS", "ID", "SIZE", "USED HERE", "INODE", "VERSIONS")
	for _, f := range v.Forms {
		for _, s := range f.Segments {
			g.row(f.Form, units.Bytes(f.Bytes), f.Holders, s.Id, units.Bytes(s.SizeBytes), units.Bytes(s.UsedBytes), s.Inode, s.Versions)
		}
	}
	return g.flush()
}

// printTree writes the tree, a node a line; a limit under zero is none.
func printTree(w io.Writer, root table.Node, tensors []tensorRow, limit int) error {
	fmt.Fprintln(w, "\nTree")
	g := newGrid(w, "  ")
	lines := 0
	var walk func(n table.Node, depth int) error
	walk = func(n table.Node, depth int) error {
		lines++
		if limit < 0 || lines <= limit {
			what, err := describe(n, tensors)
			if err != nil {
				return err
			}
			key := n.Key()
			if depth == 0 {
				key = "."
			}
			g.row(strings.Repeat("  ", depth)+key, n.Kind(), what)
		}
		for _, c := range n.Children() {
			if err := walk(c, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(root, 0); err != nil {
		return err
	}
	if err := g.flush(); err != nil {
		return err
	}
	more(w, lines, limit)
	return nil
}

// describe is what a node is, in one line.
func describe(n table.Node, tensors []tensorRow) (string, error) {
	switch n.Kind() {
	case manifest.Module:
		size := 0
		for k := range n.Params() {
			_, row, err := n.Param(k)
			if err != nil || row >= len(tensors) {
				return "", corrupt(fmt.Errorf("parameter %d of %q: %w", k, n.Key(), err))
			}
			size += tensors[row].SizeBytes
		}
		s := n.Impl()
		if n.Params() > 0 {
			s += fmt.Sprintf("  %s, %s", count(n.Params(), "tensor"), units.Bytes(size))
		}
		if c := string(n.Config()); c != "" && c != "{}" {
			s += "  " + cut(c, showContent)
		}
		return s, nil
	case manifest.List, manifest.Dict:
		return strings.TrimSpace(n.Impl() + "  " + count(len(n.Children()), "item")), nil
	case manifest.Value:
		if row, large, err := valueRow(n, tensors); err != nil || large {
			return n.MediaType() + "  " + units.Bytes(row.SizeBytes), err
		}
		b := n.Value()
		if len(b) <= showContent && utf8.Valid(b) {
			return n.MediaType() + "  " + string(b), nil
		}
		return n.MediaType() + "  " + units.Bytes(len(b)), nil
	case manifest.Ref:
		return "-> " + n.Ref(), nil
	}
	return "", corrupt(fmt.Errorf("node %q has no kind that this version knows", n.Key()))
}

func printTensors(w io.Writer, tensors []tensorRow, limit int) error {
	if len(tensors) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nTensors")
	g := newGrid(w, "  ", "NAME", "DTYPE", "SHAPE", "ROLE", "BYTES", "SEGMENT")
	for i, t := range tensors {
		if i == limit {
			break
		}
		name := first(t.Names)
		if len(t.Names) > 1 {
			name += " = " + strings.Join(t.Names[1:], " = ")
		}
		g.row(name, t.DType, tensor.Shape(t.Shape), t.Role, t.SizeBytes, fmt.Sprintf("%d#%d", t.Segment, t.Offset))
	}
	if err := g.flush(); err != nil {
		return err
	}
	more(w, len(tensors), limit)
	return nil
}

// more says how many lines a limit has cut.
func more(w io.Writer, lines, limit int) {
	if limit >= 0 && lines > limit {
		fmt.Fprintf(w, "  ... %d more: --all shows them\n", lines-limit)
	}
}

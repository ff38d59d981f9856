package encoder

import (
	"github.com/zcstore/zcstore/gpu"
)

// transformer is the encoder of BERT and of most of its family: embeddings that are added up and normalised, and layers of
// attention and a feed-forward net, each added to what went in and normalised after that.
type transformer struct {
	word     *gpu.Weight // [vocabulary, embedding size]
	kind     *gpu.Weight // [types, embedding size], or nil
	position *gpu.Weight // [positions, embedding size], or nil
	norm     norm
	project  *gpu.Group // [hidden size, embedding size], or nil

	layers []*layer // a layer may come several times
	act    gpu.Act
	eps    float32
	heads  int

	bias     *gpu.Weight // [buckets, heads]: what scores get for the distance of two tokens, or nil
	relative *relative   // what states have to do with distances, or nil
	conv     *convolution
}

// layer is one block of the encoder.
type layer struct {
	qkv      *gpu.Group // three of [hidden size, hidden size]
	attn     *gpu.Group // [hidden size, hidden size]
	attnNorm norm
	up       *gpu.Group // [intermediate size, hidden size]
	down     *gpu.Group // [hidden size, intermediate size]
	norm     norm

	far *gpu.Group // [hidden size, hidden size] twice: keys and queries of distances, or nil
}

// layerNames are what a family calls the parts of a layer.
type layerNames struct{ query, key, value, attn, attnNorm, up, down, norm string }

// bertLayer is what BERT calls them.
var bertLayer = layerNames{"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
	"attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"}

// layer loads the layer of that name.
func (l *loader) layer(p string, n layerNames) *layer {
	h, wide := l.sizes.Hidden, l.sizes.Intermediate
	return &layer{
		qkv:      l.group(h, h, p+n.query, p+n.key, p+n.value),
		attn:     l.group(h, h, p+n.attn),
		attnNorm: l.norm(p+n.attnNorm, h),
		up:       l.group(wide, h, p+n.up),
		down:     l.group(h, wide, p+n.down),
		norm:     l.norm(p+n.norm, h),
	}
}

// embeddings loads tables and their norm, as most families call them, and no layers.
func (l *loader) embeddings(types, positions bool) *transformer {
	z, p := &l.sizes, l.prefix+"embeddings."
	t := &transformer{act: z.Act, eps: float32(z.Eps), heads: z.Heads}
	t.word = l.weight(p+"word_embeddings.weight", z.Vocab, z.Embedding)
	if positions {
		t.position = l.weight(p+"position_embeddings.weight", z.Positions, z.Embedding)
	}
	if types {
		t.kind = l.weight(p+"token_type_embeddings.weight", z.Types, z.Embedding)
	}
	t.norm = l.norm(p+"LayerNorm", z.Embedding)
	return t
}

func (t *transformer) embed(p *pass) {
	s, tokens := p.s, len(p.b.IDs)
	if t.bias != nil {
		p.near.biases(p, t)
	}
	if t.relative != nil {
		t.relative.begin(p)
	}
	if t.conv != nil {
		p.near.embedded = s.F32(tokens, p.h.Cols)
	}
	mark := s.Mark()
	ids := s.I32(tokens)
	s.UploadInts(ids, p.b.IDs)
	tables := append(p.tables[:0], gpu.Lookup{Table: t.word, IDs: ids})
	if t.kind != nil {
		kinds := s.I32(tokens)
		s.UploadInts(kinds, p.kinds())
		tables = append(tables, gpu.Lookup{Table: t.kind, IDs: kinds})
	}
	if t.position != nil {
		positions := s.I32(tokens)
		s.UploadInts(positions, p.positions())
		tables = append(tables, gpu.Lookup{Table: t.position, IDs: positions})
	}
	x := p.h
	if t.project != nil {
		x = s.F32(tokens, t.word.K)
	}
	s.Gather(x, tables)
	s.LayerNorm(x, x, gpu.Matrix{}, t.norm.weight, t.norm.bias, t.eps)
	if t.project != nil {
		s.Linear(p.h, x, t.project, gpu.Epilogue{})
	}
	if t.conv != nil {
		s.Copy(p.near.embedded, p.h)
	}
	s.Release(mark)
}

func (t *transformer) layer(p *pass, i int, part part) {
	s, l, h := p.s, t.layers[i], p.states(part)
	hidden := h.Cols
	mark := s.Mark()
	qkv := s.F32(h.Rows, 3*hidden)
	seen := s.F32(h.Rows, hidden)
	s.Linear(qkv, h, l.qkv, gpu.Epilogue{})
	a := gpu.Attention{Heads: t.heads, Seqs: part.seqs}
	if t.bias != nil {
		a.Bias = p.near.biasOf(part)
	}
	if t.relative != nil {
		t.relative.attention(p, l, part, &a)
	}
	s.Attention(seen, qkv.Columns(0, hidden), qkv.Columns(hidden, hidden), qkv.Columns(2*hidden, hidden), a)
	s.Linear(h, seen, l.attn, gpu.Epilogue{Residual: h})
	s.LayerNorm(h, h, gpu.Matrix{}, l.attnNorm.weight, l.attnNorm.bias, t.eps)
	s.Release(mark)

	wide := s.F32(h.Rows, l.up.N())
	s.Linear(wide, h, l.up, gpu.Epilogue{Act: t.act})
	s.Linear(h, wide, l.down, gpu.Epilogue{Residual: h})
	s.LayerNorm(h, h, gpu.Matrix{}, l.norm.weight, l.norm.bias, t.eps)
	s.Release(mark)
	if i == 0 && t.conv != nil {
		t.conv.run(p, part)
	}
}

func (t *transformer) finish(*pass) {}

// nearness is what a pass keeps of how far tokens are from each other.
type nearness struct {
	bias     gpu.Matrix // [2*longest-1, heads]
	states   gpu.Matrix // of distances: [numbers, hidden size]
	ids      gpu.Matrix // [1, 2*longest-1]
	embedded gpu.Matrix // the states before the first layer, for a convolution
	cos, sin [2]gpu.Matrix

	longest int
	numbers []int32 // uploaded, unchanged until Sync
	all     []int32
	angles  [4][]float32
}

// forget gives up what belongs to a stream, and keeps the rest for the next.
func (n *nearness) forget() {
	n.bias, n.states, n.ids, n.embedded, n.cos, n.sin = gpu.Matrix{}, gpu.Matrix{}, gpu.Matrix{}, gpu.Matrix{}, [2]gpu.Matrix{}, [2]gpu.Matrix{}
}

// number gives each distance up to the longest text a number.
func (n *nearness) number(longest int, of func(distance int) int) []int32 {
	n.longest = longest
	n.numbers = n.numbers[:0]
	for d := 1 - longest; d < longest; d++ {
		n.numbers = append(n.numbers, int32(of(d)))
	}
	return n.numbers
}

// biases launches what scores get for each distance.
func (n *nearness) biases(p *pass, t *transformer) {
	if p.seqs.MaxLen == 0 {
		return
	}
	numbers := n.number(p.seqs.MaxLen, bucket) // of key-query
	n.bias = p.s.F32(len(numbers), t.heads)
	ids := p.s.I32(len(numbers))
	p.s.UploadInts(ids, numbers)
	p.s.Gather(n.bias, []gpu.Lookup{{Table: t.bias, IDs: ids}})
}

// biasOf is for a part, whose longest text may be shorter than that of the batch.
func (n *nearness) biasOf(t part) gpu.Matrix {
	if t.seqs.MaxLen == 0 {
		return gpu.Matrix{}
	}
	return n.bias.Slice(n.longest-t.seqs.MaxLen, 2*t.seqs.MaxLen-1)
}

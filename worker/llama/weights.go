package llama

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// weights are all tensors of a model as float32. Matrices are [out][in], row-major.
type weights struct {
	embed  []float32 // [vocab][dim]
	layers []layerWeights
	norm   []float32 // [dim]
	output []float32 // [vocab][dim]; the same memory as embed if they are tied

	outputName string         // of the tensor that output is
	tensors    []tensorDigest // what the digest was made from
}

// tensorDigest is a tensor as it stands in the manifest.
type tensorDigest struct {
	name, dtype string
	shape       []int
	digest      block.Digest
}

type layerWeights struct {
	attnNorm []float32 // [dim]
	qkv      []float32 // [qDim + 2 kvDim][dim]: queries, keys and values in one product
	attnOut  []float32 // [dim][qDim]
	ffnNorm  []float32 // [dim]
	gate, up []float32 // [ffn][dim]
	down     []float32 // [dim][ffn]
}

// slot is one tensor that the model needs, and where it goes.
type slot struct {
	tensor stored
	dst    []float32
}

// loadWeights reads, digests and widens every tensor of src, threads of them at a time. Nothing is allocated before all names
// and shapes have been checked against the file, which bounds the sum by a small multiple of its size.
func loadWeights(src *source, h *hparams, threads int) (*weights, block.Digest, error) {
	p := newPlan(src.tensors)
	w := &weights{layers: make([]layerWeights, h.layers), outputName: src.names.output}
	p.want(src.names.embed, &w.embed, h.dim, h.vocab)
	p.want(src.names.norm, &w.norm, h.dim)
	if tied := !p.has(src.names.output); tied {
		w.outputName = src.names.embed
	} else {
		p.want(src.names.output, &w.output, h.dim, h.vocab)
	}
	for i := range w.layers {
		l, name := &w.layers[i], func(s string) string { return src.names.layer(i, s) }
		p.want(name("attn_norm"), &l.attnNorm, h.dim)
		p.join(&l.qkv, h.dim, []string{name("attn_q"), name("attn_k"), name("attn_v")}, []int{h.qDim(), h.kvDim(), h.kvDim()})
		p.want(name("attn_output"), &l.attnOut, h.qDim(), h.dim)
		p.want(name("ffn_norm"), &l.ffnNorm, h.dim)
		p.want(name("ffn_gate"), &l.gate, h.dim, h.ffn)
		p.want(name("ffn_up"), &l.up, h.dim, h.ffn)
		p.want(name("ffn_down"), &l.down, h.ffn, h.dim)
	}
	slots, err := p.allocate()
	if err != nil {
		return nil, block.Digest{}, err
	}
	if w.output == nil {
		w.output = w.embed
	}
	turned := make(map[string]bool)
	if src.halfTurned {
		for i := range w.layers {
			turned[src.names.layer(i, "attn_q")], turned[src.names.layer(i, "attn_k")] = true, true
		}
	}

	digests := make([]block.Digest, len(slots))
	var g errgroup.Group
	g.SetLimit(threads)
	for i := range slots {
		g.Go(func() (err error) {
			if digests[i], err = slots[i].load(); err == nil && turned[slots[i].tensor.Name] {
				interleave(slots[i].dst, h.headDim, h.dim)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, block.Digest{}, err
	}
	var m engine.Manifest
	h.describe(&m)
	for i, s := range slots {
		m.Tensor(s.tensor.Name, s.tensor.DType.String(), s.tensor.Shape, digests[i])
		w.tensors = append(w.tensors, tensorDigest{s.tensor.Name, s.tensor.DType.String(), s.tensor.Shape, digests[i]})
	}
	sum, err := m.Sum()
	return w, sum, err
}

// interleave brings the rows of each head of a query or key matrix from the order of Hugging Face, where rope turns row i of a head together
// with row i + headDim/2, into that of GGUF files and of our kernels, where rows that turn together are neighbours. Dot products
// of a query and a key are the same sums in another order of terms.
func interleave(w []float32, headDim, in int) {
	tmp := make([]float32, headDim*in)
	for ; len(w) >= len(tmp); w = w[len(tmp):] {
		copy(tmp, w)
		for i := range headDim / 2 {
			copy(row(w, 2*i, in), row(tmp, i, in))
			copy(row(w, 2*i+1, in), row(tmp, i+headDim/2, in))
		}
	}
}

// load streams the tensor through the digest into dst.
func (s slot) load() (block.Digest, error) {
	elements, bytes := s.tensor.DType.Block()
	const blocksPerChunk = 1 << 15
	buf := make([]byte, min(int64(blocksPerChunk*bytes), s.tensor.Bytes))
	r, dst, sum := s.tensor.open(), s.dst, sha256.New()
	for left := s.tensor.Bytes; left > 0; left -= int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), left)]
		if _, err := io.ReadFull(r, buf); err != nil {
			return block.Digest{}, fmt.Errorf("read tensor %q: %w", s.tensor.Name, err)
		}
		sum.Write(buf)
		n := len(buf) / bytes * elements
		dequantize(dst[:n], buf, s.tensor.DType)
		dst = dst[n:]
	}
	var d block.Digest
	sum.Sum(d[:0])
	return d, nil
}

// plan matches the tensors that a model needs with those that a file has.
type plan struct {
	byName map[string]stored
	groups []planGroup
	used   map[string]bool
	errs   []error
}

// planGroup is one allocation, filled by consecutive tensors.
type planGroup struct {
	dst     *[]float32
	tensors []stored
}

func newPlan(tensors []stored) *plan {
	p := &plan{byName: make(map[string]stored, len(tensors)), used: make(map[string]bool, len(tensors))}
	for _, t := range tensors {
		p.byName[t.Name] = t
	}
	return p
}

func (p *plan) has(name string) bool { _, ok := p.byName[name]; return ok }

// want asks for a tensor of a shape, innermost dimension first.
func (p *plan) want(name string, dst *[]float32, shape ...int) {
	if t, ok := p.take(name, shape...); ok {
		p.groups = append(p.groups, planGroup{dst: dst, tensors: []stored{t}})
	}
}

// join asks for matrices with rows of width in, to be stored one after the other.
func (p *plan) join(dst *[]float32, in int, names []string, rows []int) {
	g := planGroup{dst: dst}
	for i, name := range names {
		if t, ok := p.take(name, in, rows[i]); ok {
			g.tensors = append(g.tensors, t)
		}
	}
	p.groups = append(p.groups, g)
}

func (p *plan) take(name string, shape ...int) (stored, bool) {
	t, ok := p.byName[name]
	if !ok {
		p.errs = append(p.errs, fmt.Errorf("tensor %q is missing", name))
		return t, false
	}
	p.used[name] = true
	got := t.Shape
	for len(got) > len(shape) && got[len(got)-1] == 1 { // some writers pad shapes with ones
		got = got[:len(got)-1]
	}
	if !slices.Equal(got, shape) {
		p.errs = append(p.errs, fmt.Errorf("tensor %q has shape %v, want %v", name, t.Shape, shape))
		return t, false
	}
	return t, true
}

// allocate reports everything that does not fit, or makes the memory. A tensor that nobody asked for is an error: the model
// would compute something else than its author meant.
func (p *plan) allocate() ([]slot, error) {
	for name := range p.byName {
		if !p.used[name] {
			p.errs = append(p.errs, fmt.Errorf("tensor %q belongs to a variant of the architecture that is not supported", name))
		}
	}
	if n := len(p.errs); n > 0 {
		const shown = 5
		if n > shown {
			p.errs = append(p.errs[:shown], fmt.Errorf("and %d more", n-shown))
		}
		return nil, errors.Join(p.errs...)
	}
	var slots []slot
	for _, g := range p.groups {
		total := 0
		for _, t := range g.tensors {
			total += t.Elements()
		}
		mem := make([]float32, total)
		*g.dst = mem
		for _, t := range g.tensors {
			n := t.Elements()
			slots = append(slots, slot{tensor: t, dst: mem[:n:n]})
			mem = mem[n:]
		}
	}
	return slots, nil
}

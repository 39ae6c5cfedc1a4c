package llama

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

// Trainer fine-tunes a copy of a model's output matrix by gradient descent on cross-entropy. Where output and embedding are tied, as in
// most small models, the embedding moves with it, and with it every K and V; only the output's side of the gradient is taken.
//
// A trainer computes every token itself: it has no way to reach a cache. The model it began with is never changed; what it has
// learnt becomes a model of its own (Model), with another digest and therefore another variant, so that nothing cached from the
// one can be used for the other. It is not safe for concurrent use.
type Trainer struct {
	model *Model // of its own: nobody else sees its weights change
	rate  float32

	kv     kvStore
	hidden []float32 // [tokens][dim] normalised
	logits []float32 // [tokens][vocab], then their gradient
	steps  int
}

// NewTrainer copies what will be trained. rate is the step size; 0 means 0.5.
func NewTrainer(m *Model, rate float32) (*Trainer, error) {
	if rate == 0 {
		rate = 0.5
	}
	if !(rate > 0 && rate < 100) {
		return nil, fmt.Errorf("llama: train: rate is %v, want more than 0 and less than 100", rate)
	}
	if m.closed.Load() {
		return nil, fmt.Errorf("llama: train: %w", engine.ErrClosed)
	}
	return &Trainer{model: m.copyHead(), rate: rate}, nil
}

// Step computes tokens, and moves the weights so that each becomes more likely after those before it. It returns the mean
// cross-entropy, in nats, from before the move. At most 128 tokens, at least two.
func (t *Trainer) Step(ctx context.Context, tokens []int32) (loss float64, err error) {
	h := &t.model.hparams
	if len(tokens) < 2 || len(tokens) > min(batchTokens, t.model.context) {
		return 0, fmt.Errorf("llama: train: %d tokens, want 2 to %d", len(tokens), min(batchTokens, t.model.context))
	}
	for i, x := range tokens {
		if x < 0 || int(x) >= h.vocab {
			return 0, fmt.Errorf("llama: train: token %d at index %d is outside the vocabulary of %d", x, i, h.vocab)
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("llama: train: %w", err)
	}
	n := len(tokens) - 1 // the last has no successor to learn from
	if err := t.forward(ctx, tokens[:n]); err != nil {
		return 0, fmt.Errorf("llama: train: %w", err)
	}
	loss = t.lossAndGradient(tokens[1:])
	if math.IsNaN(loss) || math.IsInf(loss, 0) {
		return loss, errors.New("llama: train: the loss is not a number any more: take a smaller rate")
	}
	scale := -t.rate / float32(n)
	for i := range n {
		x, g := row(t.hidden, i, h.dim), row(t.logits, i, h.vocab)
		for v, gv := range g {
			if step := scale * gv; step != 0 {
				w := row(t.model.weights.output, v, h.dim)
				for d, xd := range x {
					w[d] += step * xd
				}
			}
		}
	}
	t.steps++
	return loss, nil
}

// forward fills hidden and logits of every token, from scratch.
func (t *Trainer) forward(ctx context.Context, tokens []int32) error {
	m, h := t.model, &t.model.hparams
	t.kv.layout, t.kv.take = m.layout, m.takeSpan
	t.hidden, t.logits = resize(t.hidden, len(tokens)*h.dim), resize(t.logits, len(tokens)*h.vocab)
	p := m.beginPass(len(tokens))
	defer m.endPass(p)
	p.add(&t.kv, 0, tokens, nil)
	if err := p.forward(ctx); err != nil {
		return err
	}
	for i := range tokens {
		kernel.RMSNorm(row(t.hidden, i, h.dim), row(p.x, i, h.dim), m.weights.norm, h.eps)
	}
	for tile := range kernel.Tiles(h.vocab) {
		kernel.MatTile(t.logits, t.hidden, m.weights.output, len(tokens), h.vocab, h.dim, tile)
	}
	return nil
}

// lossAndGradient turns logits into softmax minus the one that should have been certain.
func (t *Trainer) lossAndGradient(targets []int32) float64 {
	vocab, sum := t.model.hparams.vocab, 0.0
	for i, target := range targets {
		l := row(t.logits, i, vocab)
		most := slices.Max(l)
		total := 0.0
		for _, x := range l {
			total += math.Exp(float64(x - most))
		}
		sum += math.Log(total) + float64(most-l[target])
		for v, x := range l {
			l[v] = float32(math.Exp(float64(x-most)) / total)
		}
		l[target]--
	}
	return sum / float64(len(targets))
}

func resize(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

// Model returns what has been learnt so far as a new engine. Its digest is that of a file with the same tensors, the trained one as
// F32. The trainer may go on; the model does not change with it.
func (t *Trainer) Model() (*Model, error) {
	if t.steps == 0 {
		return nil, errors.New("llama: train: no step was made: the weights are those of the model before")
	}
	m := t.model.copyHead()
	sum := sha256.New()
	var buf []byte
	for i := 0; i < len(m.weights.output); i += 4096 {
		buf = buf[:0]
		for _, x := range m.weights.output[i:min(i+4096, len(m.weights.output))] {
			buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(x))
		}
		sum.Write(buf)
	}
	var manifest engine.Manifest
	m.hparams.describe(&manifest)
	m.weights.tensors = slices.Clone(m.weights.tensors)
	for i := range m.weights.tensors {
		x := &m.weights.tensors[i]
		if x.name == m.weights.outputName {
			x.dtype = "F32"
			sum.Sum(x.digest[:0])
		}
		manifest.Tensor(x.name, x.dtype, x.shape, x.digest)
	}
	digest, err := manifest.Sum()
	if err != nil {
		return nil, fmt.Errorf("llama: train: %w", err)
	}
	m.identity = block.Identity{Weights: digest, Layout: m.layout.Digest()}
	return m, nil
}

// copyHead returns a model that shares everything with m but the output matrix, and the embedding if that is the same.
func (m *Model) copyHead() *Model {
	w := *m.weights
	w.output = slices.Clone(w.output)
	if m.weights.tied() {
		w.embed = w.output
	}
	return &Model{
		hparams: m.hparams, weights: &w, tokenizer: m.tokenizer, rope: m.rope, layout: m.layout, identity: m.identity,
		context: m.context, threads: m.threads, crew: newCrew(m.threads), parallelFLOPs: m.parallelFLOPs,
	}
}

func (w *weights) tied() bool { return &w.output[0] == &w.embed[0] }

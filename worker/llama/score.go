package llama

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/worker/engine"
)

var _ engine.Scorer = (*Model)(nil)

// Score implements [engine.Scorer]. Layers see a whole batch as in Prefill; logits are made of a few tokens at a time, since those of a batch
// would take more memory than its activations: 64 MiB with a vocabulary of 128,000.
func (m *Model) Score(ctx context.Context, seq engine.Sequence, tokens []int32, visit func(i int, logits []float32)) ([]float32, error) {
	s, ok := seq.(*sequence)
	if !ok || s == nil || s.model != m {
		return nil, errors.New("llama: score: the sequence is not of this engine")
	}
	if err := s.usable("score"); err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return nil, errors.New("llama: score: no tokens: the logits of an empty call are not defined")
	}
	if err := s.accepts("score", tokens); err != nil {
		return nil, err
	}
	p := m.beginPass(len(tokens))
	defer m.endPass(p)
	vocab := m.hparams.vocab
	room := make([]float32, min(tokenGroup, len(tokens))*vocab)
	for done := 0; done < len(tokens); {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("llama: score: stopped after %d tokens: %w", s.length, err)
		}
		n := min(batchTokens, len(tokens)-done)
		p.clear()
		p.add(&s.kv, s.length, tokens[done:done+n], nil)
		if err := p.forward(ctx); err != nil {
			return nil, fmt.Errorf("llama: score: stopped after %d tokens: %w", s.length, err)
		}
		for first := 0; first < n; first += tokenGroup {
			p.outputs = p.outputs[:0]
			for t := first; t < min(first+tokenGroup, n); t++ {
				logits := row(room, t-first, vocab)
				if done+t == len(tokens)-1 {
					logits = s.room()
				}
				p.outputs = append(p.outputs, output{row: t, logits: logits})
			}
			p.project()
			for _, o := range p.outputs {
				visit(done+o.row, o.logits)
			}
		}
		s.length += n
		done += n
	}
	return s.logits, nil
}

package llama

import (
	"context"
	"fmt"

	"github.com/kvtier/kvtier/worker/engine"
)

// Step implements [engine.Batcher]. A tile of weights is multiplied with the activations of all sequences while it is in the
// first-level cache; attention runs per sequence. No sequences are no work and no error.
func (m *Model) Step(ctx context.Context, seqs []engine.Sequence, tokens []int32) ([][]float32, error) {
	own, err := m.batch(seqs, tokens)
	if err != nil || len(own) == 0 {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("llama: step: %w", err)
	}
	p := m.beginPass(len(own))
	defer m.endPass(p)
	logits := make([][]float32, len(own))
	for first := 0; first < len(own); first += batchTokens {
		p.clear()
		for i := first; i < min(first+batchTokens, len(own)); i++ {
			logits[i] = own[i].room()
			p.add(&own[i].kv, own[i].length, tokens[i:i+1], logits[i])
		}
		if err := p.forward(ctx); err != nil {
			return nil, fmt.Errorf("llama: step: %w", err)
		}
	}
	for _, s := range own {
		s.length++
	}
	return logits, nil
}

// batch refuses what Step cannot compute, before anything is computed.
func (m *Model) batch(seqs []engine.Sequence, tokens []int32) ([]*sequence, error) {
	if len(seqs) != len(tokens) {
		return nil, fmt.Errorf("llama: step: %d tokens for %d sequences, want one each", len(tokens), len(seqs))
	}
	own := make([]*sequence, len(seqs))
	seen := make(map[*sequence]int, len(seqs))
	for i, x := range seqs {
		s, ok := x.(*sequence)
		if !ok || s == nil || s.model != m {
			return nil, fmt.Errorf("llama: step: sequence %d is not of this engine", i)
		}
		if j, ok := seen[s]; ok {
			return nil, fmt.Errorf("llama: step: sequences %d and %d are the same: a step computes one token of each", j, i)
		}
		if err := s.usable("step"); err != nil {
			return nil, fmt.Errorf("sequence %d: %w", i, err)
		}
		if err := s.accepts("step", tokens[i:i+1]); err != nil {
			return nil, fmt.Errorf("sequence %d: %w", i, err)
		}
		own[i], seen[s] = s, i
	}
	return own, nil
}

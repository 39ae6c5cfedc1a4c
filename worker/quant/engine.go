package quant

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/worker/engine"
)

// Wrap returns e with K/V cached as q says; e itself where that is block.QuantNone. Closing the result closes e. It has e's optional powers.
func Wrap(e engine.Engine, q block.Quant) (engine.Engine, error) {
	if q == block.QuantNone {
		return e, nil
	}
	l := e.Layout()
	if l.Quant != block.QuantNone {
		return nil, fmt.Errorf("quant: the engine's layout is quantised already: %v", l.Quant)
	}
	l.Quant = q
	if _, err := codec.NewQuantiser(l); err != nil {
		return nil, fmt.Errorf("quant: %w", err)
	}
	w := &quantised{Engine: e, layout: l, identity: Identity(e.Identity(), q)}
	b, batches := e.(engine.Batcher)
	sc, scores := e.(engine.Scorer)
	switch {
	case batches && scores:
		return &struct {
			*quantised
			stepping
			scoring
		}{w, stepping{b}, scoring{sc}}, nil
	case batches:
		return &struct {
			*quantised
			stepping
		}{w, stepping{b}}, nil
	case scores:
		return &struct {
			*quantised
			scoring
		}{w, scoring{sc}}, nil
	}
	return w, nil
}

// Identity is that of the wrapped engine, for an engine of identity id.
func Identity(id block.Identity, q block.Quant) block.Identity {
	id.Layout = q.Layout(id.Layout)
	return id
}

// quantised is an engine whose sequences import and export K/V in eight bits.
type quantised struct {
	engine.Engine
	layout   block.Layout
	identity block.Identity
}

var (
	_ engine.Engine    = (*quantised)(nil)
	_ engine.Templater = (*quantised)(nil)
	_ engine.Sized     = (*quantised)(nil)
	_ engine.Parallel  = (*quantised)(nil)
)

// Layout is the engine's with a quantisation: other bytes, another digest.
func (e *quantised) Layout() block.Layout { return e.layout }

// Identity names the same weights in another layout.
func (e *quantised) Identity() block.Identity { return e.identity }

func (e *quantised) NewSequence() (engine.Sequence, error) {
	s, err := e.Engine.NewSequence()
	if err != nil {
		return nil, err
	}
	q, err := codec.NewQuantiser(e.layout)
	if err != nil {
		return nil, err
	}
	w := &sequence{Sequence: s, layout: e.layout, context: e.ContextTokens(), quantiser: q, arriving: map[int]*arriving{}, from: -1}
	if g, ok := s.(engine.Generator); ok {
		return &generating{sequence: w, Generator: g}, nil
	}
	return w, nil
}

// ChatTemplate implements [engine.Templater], with no template if the engine within has none.
func (e *quantised) ChatTemplate() engine.ChatTemplate {
	if t, ok := e.Engine.(engine.Templater); ok {
		return t.ChatTemplate()
	}
	return engine.ChatTemplate{}
}

// Sequences implements [engine.Parallel] as the engine within does, if it does.
func (e *quantised) Sequences() int {
	if p, ok := e.Engine.(engine.Parallel); ok {
		return p.Sequences()
	}
	return 0
}

// SequenceBytes implements [engine.Sized]: sequences hold K/V as the engine within does, and a block on its way in each form.
func (e *quantised) SequenceBytes(tokens int) int64 {
	blocks := int64(e.layout.Exact().BlockBytes() + e.layout.BlockBytes())
	if s, ok := e.Engine.(engine.Sized); ok {
		return blocks + s.SequenceBytes(tokens)
	}
	return blocks + int64(tokens)*int64(e.Engine.Layout().TokenBytes())
}

// stepping computes a token for each of several sequences at once, on the sequences within.
type stepping struct{ within engine.Batcher }

// Step implements [engine.Batcher].
func (e stepping) Step(ctx context.Context, seqs []engine.Sequence, tokens []int32) ([][]float32, error) {
	inner := make([]engine.Sequence, len(seqs))
	for i, s := range seqs {
		var err error
		if inner[i], err = within(s); err != nil {
			return nil, fmt.Errorf("quant: step: sequence %d %w", i, err)
		}
	}
	return e.within.Step(ctx, inner, tokens)
}

// scoring gives out the logits of all tokens, of the sequence within.
type scoring struct{ within engine.Scorer }

// Score implements [engine.Scorer].
func (e scoring) Score(ctx context.Context, seq engine.Sequence, tokens []int32, visit func(int, []float32)) ([]float32, error) {
	inner, err := within(seq)
	if err != nil {
		return nil, fmt.Errorf("quant: score: the sequence %w", err)
	}
	return e.within.Score(ctx, inner, tokens, visit)
}

func within(s engine.Sequence) (engine.Sequence, error) {
	if w, ok := s.(interface{ within() engine.Sequence }); ok {
		return w.within(), nil
	}
	return nil, errors.New("is of another engine")
}

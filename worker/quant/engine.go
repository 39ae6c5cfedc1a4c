package quant

import (
	"context"
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
	if b, ok := e.(engine.Batcher); ok {
		return &batching{quantised: w, batcher: b}, nil
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
	w := &sequence{Sequence: s, layout: e.layout, quantiser: q}
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

// SequenceBytes implements [engine.Sized]: sequences hold K/V as the engine within does.
func (e *quantised) SequenceBytes(tokens int) int64 {
	if s, ok := e.Engine.(engine.Sized); ok {
		return s.SequenceBytes(tokens)
	}
	return int64(tokens) * int64(e.Engine.Layout().TokenBytes())
}

// batching is a quantised engine that computes a token for each of several sequences at once.
type batching struct {
	*quantised
	batcher engine.Batcher
}

var _ engine.Batcher = (*batching)(nil)

// Step implements [engine.Batcher] on the sequences within.
func (e *batching) Step(ctx context.Context, seqs []engine.Sequence, tokens []int32) ([][]float32, error) {
	inner := make([]engine.Sequence, len(seqs))
	for i, s := range seqs {
		w, ok := s.(interface{ within() engine.Sequence })
		if !ok {
			return nil, fmt.Errorf("quant: step: sequence %d is of another engine", i)
		}
		inner[i] = w.within()
	}
	return e.batcher.Step(ctx, inner, tokens)
}

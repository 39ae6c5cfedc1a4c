package llama

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

// Model is one set of weights in memory, as float32. It is immutable and safe for concurrent use.
type Model struct {
	hparams   hparams
	weights   *weights
	tokenizer *tokenizer
	rope      kernel.Rope
	layout    block.Layout
	identity  block.Identity
	context   int
	threads   int
	crew      *crew
	// parallelFLOPs is the work below which a call does not ask for helpers: waking them takes longer.
	parallelFLOPs int

	passes sync.Pool // *pass: scratch of a call
	spans  sync.Pool // *span: memory of closed sequences
	closed atomic.Bool
}

var (
	_ engine.Engine   = (*Model)(nil)
	_ engine.Batcher  = (*Model)(nil)
	_ engine.Sequence = (*sequence)(nil)
)

// Layout implements [engine.Engine]: binary16 in the order layer, K or V, token, head, dimension. Its Numerics names the
// arithmetic of this process, so that processes whose processors round differently do not share K/V.
func (m *Model) Layout() block.Layout { return m.layout }

// Identity implements [engine.Engine]. Weights is the sum of an [engine.Manifest] over all tensors and hyper-parameters.
func (m *Model) Identity() block.Identity { return m.identity }

// Name implements [engine.Engine].
func (m *Model) Name() string { return m.hparams.name }

// ContextTokens implements [engine.Engine].
func (m *Model) ContextTokens() int { return m.context }

// Tokenizer implements [engine.Engine].
func (m *Model) Tokenizer() engine.Tokenizer { return m.tokenizer }

// NewSequence implements [engine.Engine]. The sequence takes memory as it grows, in steps of 256 tokens, twice
// Layout.TokenBytes each.
func (m *Model) NewSequence() (engine.Sequence, error) {
	if m.closed.Load() {
		return nil, fmt.Errorf("llama: new sequence: %w", engine.ErrClosed)
	}
	return &sequence{model: m, kv: kvStore{layout: m.layout, take: m.takeSpan}}, nil
}

// Close implements [engine.Engine]. Sequences that are still open refuse to compute from now on; the memory goes when the last
// reference does. Closing twice is allowed.
func (m *Model) Close() error {
	m.closed.Store(true)
	return nil
}

// takeSpan returns memory for a span. Recycled memory holds old values: nothing reads a position that was not written.
func (m *Model) takeSpan() *span {
	if s, ok := m.spans.Get().(*span); ok {
		clear(s.imported)
		return s
	}
	return &span{
		kv:       make([]float32, m.layout.Layers*2*m.layout.KVHeads*m.layout.HeadDim*kernel.Span),
		imported: make([]uint64, 2*m.layout.Layers*spanWords),
	}
}

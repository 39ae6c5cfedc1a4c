package llama

import (
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

var _ engine.Sized = (*Model)(nil)

// SequenceBytes implements [engine.Sized]: spans of float32, and their marks of what was imported.
func (m *Model) SequenceBytes(tokens int) int64 {
	spans := int64(min(tokens, m.context)+kernel.Span-1) / kernel.Span
	l := m.layout
	return spans * int64(l.Layers*2*(l.KVHeads*l.HeadDim*kernel.Span*4+spanWords*8))
}

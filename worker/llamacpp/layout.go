package llamacpp

import (
	"fmt"

	"github.com/kvtier/kvtier/block"
)

// layout is the K/V layout of a server whose slot files have this shape. A row is taken as one head where that fits: the file does not say
// how many heads a row has, and the order of its elements is the same either way. Numerics carries the canary's digest, in
// which every flag shows that changes numbers: rope, attention, batch size, the processor's kernels.
func (s slotShape) layout(blockTokens int, numerics string) (block.Layout, error) {
	width := s.row / s.dtype.Size()
	heads := 1
	for width%heads != 0 || width/heads > block.MaxHeadDim {
		heads++
	}
	l := block.Layout{
		DType: s.dtype, Order: block.OrderLKTHD, Layers: s.layers, KVHeads: heads, HeadDim: width / heads,
		BlockTokens: blockTokens, TPSize: 1, Numerics: numerics,
	}
	if err := l.Validate(); err != nil {
		return l, fmt.Errorf("llamacpp: this model's K/V cannot be cached: %w", err)
	}
	return l, nil
}

// uncached is the layout of an engine that exports nothing.
func uncached(blockTokens int) block.Layout {
	return block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 1, KVHeads: 1, HeadDim: 1, BlockTokens: blockTokens, TPSize: 1,
		Numerics: "llama.cpp without slot files"}
}

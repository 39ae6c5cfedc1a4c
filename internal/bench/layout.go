package bench

import (
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/block"
)

// ErrValueBytes means a value size for which there is no layout.
var ErrValueBytes = errors.New("bench: unusable value size")

// LayoutOf is a layout whose blocks have valueBytes of payload: in one part up to 4 MiB, in parts of 2 MiB above, as the layouts of
// models are cut.
func LayoutOf(valueBytes int) (block.Layout, error) {
	l := block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 1, HeadDim: 128, BlockTokens: 16, TPSize: 1,
		RopeBase: 1, RopeScale: 1, Numerics: "kvtier-bench/1"}
	perHead := 2 * l.BlockTokens * l.HeadDim * l.DType.Size()
	layer := valueBytes
	if valueBytes > block.MaxPartBytes {
		layer = block.TargetPartBytes
		l.Layers = valueBytes / layer
	}
	l.KVHeads = layer / perHead
	if valueBytes <= 0 || l.BlockBytes() != valueBytes || l.Validate() != nil {
		return l, fmt.Errorf("%w: %d: want a multiple of %d up to 4 MiB, or of 2 MiB above", ErrValueBytes, valueBytes, perHead)
	}
	return l, nil
}

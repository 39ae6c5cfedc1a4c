package bench

import (
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/block"
)

// ErrValueBytes means a value size for which there is no layout.
var ErrValueBytes = errors.New("bench: unusable value size")

// LayoutOf is a layout whose blocks have valueBytes of payload, in as many layers up to 32 as divide it: it is stored in the parts in which
// a model's would be.
func LayoutOf(valueBytes int) (block.Layout, error) {
	l := block.Layout{DType: block.BF16, Order: block.OrderLKTHD, HeadDim: 128, BlockTokens: 16, TPSize: 1,
		RopeBase: 1, RopeScale: 1, Numerics: "kvtier-bench/1"}
	perHead := 2 * l.BlockTokens * l.HeadDim * l.DType.Size()
	for l.Layers = 32; l.Layers > 1 && valueBytes%(l.Layers*perHead) != 0; l.Layers /= 2 {
	}
	l.KVHeads = valueBytes / perHead / l.Layers
	if valueBytes <= 0 || l.BlockBytes() != valueBytes || l.Validate() != nil {
		return l, fmt.Errorf("%w: %d: want a multiple of %d, of which %d layers have at most %d bytes each", ErrValueBytes, valueBytes, perHead, l.Layers, block.MaxLayerBytes)
	}
	return l, nil
}

package block_test

import (
	"fmt"
	"testing"

	"github.com/kvtier/kvtier/block"
)

// Race 26: a mixed fleet on one Redis. The same tokens under another tenant, adapter, weights, element type, quantisation, tensor-parallel rank or size,
// block size or epoch never share a key, in any combination of them.
func TestRaceMixedFleetSharesNoKey(t *testing.T) {
	tokens := []int32{1, 2, 3, 4, 5, 6, 7, 8}
	seen := map[string]string{}
	for i, dtype := range []block.DType{block.F16, block.BF16, block.F32, block.F16, block.BF16, block.F32} {
		quant := block.Quant(i / 3)
		for _, tp := range [][2]int{{0, 1}, {0, 2}, {1, 2}} {
			for _, size := range []int{4, 8} {
				for weights := range byte(2) {
					for _, tenant := range []string{"", "a", "b"} {
						for _, adapter := range []string{"", "lora-1", "lora-2"} {
							for epoch := range block.Epoch(2) {
								l := layout8B()
								l.Quant = quant
								l.DType, l.TPRank, l.TPSize, l.BlockTokens = dtype, tp[0], tp[1], size
								id := block.Identity{Weights: block.Digest{weights + 1}, Layout: l.Digest()}
								c := block.NewChain(nil, id, tenant, size)
								var extras []block.Extra
								if adapter != "" {
									extras = append(extras, block.Extra{Type: block.ExtraAdapter, Value: []byte(adapter)})
								}
								key := block.Key(id.Variant(), epoch, c.Next(c.Root(), tokens[:size], extras...), 0)
								name := fmt.Sprint(dtype, quant, tp, size, weights, tenant, adapter, epoch)
								if other, dup := seen[key]; dup {
									t.Fatalf("%s and %s share %s", name, other, key)
								}
								seen[key] = name
							}
						}
					}
				}
			}
		}
	}
}

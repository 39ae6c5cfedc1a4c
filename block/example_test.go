package block_test

import (
	"fmt"

	"github.com/kvtier/kvtier/block"
)

// The blocks of a prompt are named by everything before their end: another first token is another name for all of them.
func ExampleChain() {
	l := block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 32, KVHeads: 8, HeadDim: 128, BlockTokens: 2, TPSize: 1, Numerics: "example/1"}
	id := block.Identity{Weights: block.Digest{1}, Layout: l.Digest()}
	chain := block.NewChain(nil, id, "tenant", l.BlockTokens)
	a := chain.AppendHashes(nil, []int32{1, 2, 3, 4, 5})
	b := chain.AppendHashes(nil, []int32{1, 2, 3, 9, 5})
	c := chain.AppendHashes(nil, []int32{7, 2, 3, 4, 5})
	fmt.Println(len(a), a[0] == b[0], a[1] == b[1], a[1] == c[1])
	// Output: 2 true false false
}

// Numbers of a layout that are out of range are named, all at once.
func ExampleLayout_Validate() {
	fmt.Println(block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 2, HeadDim: 64, BlockTokens: 16, TPSize: 1}.Validate())
	// Output:
	// block: layout: KVHeads is 0, want 1 to 1024
	// block: layout: len(Numerics) is 0, want 1 to 128
}

// An engine that keeps each layer's K and V apart copies rows: a part may end within a layer.
func ExampleLayout_Rows() {
	l := block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 1, KVHeads: 8, HeadDim: 1024, BlockTokens: 16, TPSize: 1, Numerics: "example/1"}
	for _, p := range l.Parts() {
		for r := range l.Rows(p) {
			fmt.Printf("part %d: %s of tokens %d to %d at %d\n", p.Index, [2]string{"K", "V"}[r.Which], r.Token, r.Token+r.Count-1, r.Offset)
		}
	}
	// Output:
	// part 0: K of tokens 0 to 15 at 0
	// part 0: V of tokens 0 to 14 at 262144
	// part 1: V of tokens 15 to 15 at 0
}

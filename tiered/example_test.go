package tiered_test

import (
	"context"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// kv is the sequence of an engine whose K/V of a block is the sum of all tokens so far: enough to tell right from wrong.
type kv struct {
	layout block.Layout
	tokens []int32
	rows   [][]byte // K/V by block
	have   int      // tokens that count
}

func (s *kv) Len() int { return s.have }

func (s *kv) Place(pos int, _ block.Part, payload []byte) error {
	for len(s.rows) <= pos/s.layout.BlockTokens {
		s.rows = append(s.rows, nil)
	}
	s.rows[pos/s.layout.BlockTokens] = append([]byte(nil), payload...)
	return nil
}

func (s *kv) Skip(n int) error { s.have += n; return nil }

func (s *kv) Compute(_ context.Context, to int) error {
	for ; s.have < to; s.have += s.layout.BlockTokens {
		row := make([]byte, s.layout.BlockBytes())
		for _, t := range s.tokens[:s.have+s.layout.BlockTokens] {
			row[0] += byte(t)
		}
		_ = s.Place(s.have, s.layout.Part(0), row)
	}
	return nil
}

// Two workers share a store. The first computes a prompt and puts its blocks; the second takes them instead of computing.
func Example() {
	layout := block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 2, KVHeads: 1, HeadDim: 8, BlockTokens: 4, TPSize: 1,
		RopeBase: 10000, RopeScale: 1, Numerics: "example/1"}
	id := block.Identity{Weights: block.Digest{1}, Layout: layout.Digest()} // of the bytes that were loaded
	view := tiered.View{Generation: tiered.Generation{Identity: id}, Access: tiered.AccessShared}
	tokens := []int32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	chain := block.NewChain(nil, id, "", layout.BlockTokens)
	hashes := chain.AppendHashes(nil, tokens)
	shared := memstore.New(memstore.Options{})

	worker := func(name string) {
		cache, err := tiered.New(tiered.Options{Layout: layout, Remote: shared})
		if err != nil {
			panic(err)
		}
		defer cache.Close(context.Background()) // stores what is queued
		cache.SetView(view)                     // nothing is cached before

		s := &kv{layout: layout, tokens: tokens}
		out, err := cache.Bring(context.Background(), tiered.Lookup{View: view, Namespace: chain.Namespace(), Chain: hashes, Mode: gate.Always}, s)
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s: %d tokens from the remote tier, miss %v\n", name, out.Remote, out.Miss)
		_ = s.Compute(context.Background(), len(tokens))
		for i := range hashes {
			err := cache.Put(view, chain.Namespace(), hashes[:i+1], func(_ block.Part, dst []byte) error { copy(dst, s.rows[i]); return nil })
			if err != nil {
				panic(err)
			}
		}
		fmt.Printf("%s: the last block begins with %d\n", name, s.rows[2][0])
	}
	worker("first")
	worker("second")
	// Output:
	// first: 0 tokens from the remote tier, miss cold
	// first: the last block begins with 78
	// second: 12 tokens from the remote tier, miss none
	// second: the last block begins with 78
}

// Who has no sequence at hand, as an agent for engines in other processes, copies out of a Pin, and uses the copy if Release says so.
func ExampleCache_Load() {
	layout := smallLayout
	cache, err := tiered.New(tiered.Options{Layout: layout})
	if err != nil {
		panic(err)
	}
	defer cache.Close(context.Background())
	view := tiered.View{Generation: smallView.Generation, Access: tiered.AccessHot}
	cache.SetView(view)
	chain := block.NewChain(nil, view.Identity, "tenant", layout.BlockTokens)
	hashes := chain.AppendHashes(nil, make([]int32, 2*layout.BlockTokens))
	for i := range hashes {
		if err := cache.Put(view, chain.Namespace(), hashes[:i+1], func(_ block.Part, dst []byte) error { dst[0] = byte(1 + i); return nil }); err != nil {
			panic(err)
		}
	}
	lookup := tiered.Lookup{View: view, Namespace: chain.Namespace(), Chain: hashes}

	pin := cache.Load(context.Background(), lookup)
	fmt.Println(pin.Blocks(), "blocks:", pin.Part(0, 0)[0], pin.Part(1, 0)[0], "may be used:", pin.Release())

	pin = cache.Load(context.Background(), lookup)
	view.Epoch++ // a purge, while the caller copies
	cache.SetView(view)
	fmt.Println(pin.Blocks(), "blocks, may be used:", pin.Release())
	// Output:
	// 2 blocks: 1 2 may be used: true
	// 2 blocks, may be used: false
}

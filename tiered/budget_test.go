package tiered_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// largeLayout has blocks of 80 MiB, as models of 70 billion weights have with 256 tokens a block.
var largeLayout = block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 80, KVHeads: 8, HeadDim: 128, BlockTokens: 256,
	TPSize: 1, RopeBase: 1, RopeScale: 1, Numerics: "test/1"}

// A bound too small for one block would switch off what it bounds without a word.
func TestBudgetsTooSmallForABlockAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(*tiered.Options)
		field string
	}{
		"hot":   {func(o *tiered.Options) { o.HotBytes = 4 << 10 }, "HotBytes"},
		"spill": {func(o *tiered.Options) { o.SpillBytes = 4 << 10 }, "SpillBytes"},
		"fill":  {func(o *tiered.Options) { o.FillBytes = 4 << 10 }, "FillBytes"},
	} {
		for _, l := range []block.Layout{smallLayout, testLayout, largeLayout} {
			o := tiered.Options{Layout: l, Remote: memstore.New(memstore.Options{})}
			c.set(&o)
			_, err := tiered.New(o)
			bad, ok := errors.AsType[*tiered.BudgetError](err)
			if !ok || bad.Field != c.field || bad.Bytes != 4<<10 || bad.Block < int64(l.BlockBytes()) || bad.Least < bad.Block {
				t.Errorf("%s: %v", name, err)
				continue
			}
			for _, want := range []string{c.field, "4 KiB", "0 for a default"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %q does not mention %q", name, err, want)
				}
			}
		}
	}
	_, err := tiered.New(tiered.Options{Layout: smallLayout, Remote: memstore.New(memstore.Options{}), HotBytes: 1, SpillBytes: 1, FillBytes: 1})
	for _, want := range []string{"HotBytes", "SpillBytes", "FillBytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
	// What is not used needs no room.
	c, err := tiered.New(tiered.Options{Layout: smallLayout, SpillBytes: 1, FillBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	c.Close(t.Context())
}

// The least that is accepted works: a block is kept, stored and fetched. So do the defaults, whatever the size of a block.
func TestBudgetsOfABlockWork(t *testing.T) {
	least := func(l block.Layout) tiered.Options {
		_, err := tiered.New(tiered.Options{Layout: l, HotBytes: 1})
		bad, ok := errors.AsType[*tiered.BudgetError](err)
		if !ok {
			t.Fatal(err)
		}
		return tiered.Options{HotBytes: bad.Block, SpillBytes: bad.Block, FillBytes: bad.Block}
	}
	for name, l := range map[string]block.Layout{"small": smallLayout, "large": largeLayout} {
		for which, o := range map[string]tiered.Options{"least": least(l), "defaults": {}, "no hot tier": {HotBytes: tiered.NoHotTier}} {
			t.Run(name+", "+which, func(t *testing.T) {
				remote := memstore.New(memstore.Options{MaxBytes: 1 << 30})
				v := shared(tiered.Generation{Identity: block.Identity{Weights: block.Digest{1}, Layout: l.Digest()}, Epoch: 1})
				chain := block.NewChain(nil, v.Identity, "", l.BlockTokens)
				hashes := chain.AppendHashes(nil, make([]int32, 2*l.BlockTokens))
				budgets := func(to *tiered.Options) {
					to.Layout, to.HotBytes, to.SpillBytes, to.FillBytes = l, o.HotBytes, o.SpillBytes, o.FillBytes
				}
				a, b := newCache(t, remote, budgets), newCache(t, remote, budgets)
				a.SetView(v)
				b.SetView(v)
				for i := range hashes {
					if err := a.Put(v, chain.Namespace(), hashes[:i+1], func(p block.Part, dst []byte) error {
						stamp(dst, v.Generation, hashes[i], p.Index)
						return nil
					}); err != nil {
						t.Fatal(err)
					}
					flush(t, a)
				}
				if n := a.Stats().HotBlocks; (n == 0) != (o.HotBytes == tiered.NoHotTier) {
					t.Errorf("%d blocks are hot", n)
				}
				out := bring(t, b, v, chain.Namespace(), hashes, l)
				if out.Remote != 2*l.BlockTokens {
					t.Errorf("%+v; want 2 blocks from the remote tier", out)
				}
			})
		}
	}
}

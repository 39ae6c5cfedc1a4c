package tiered_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered"
)

// A chain that was put once, and never used, loses its leaves first: what is left is its front.
func TestAChainThatWasPutOnceKeepsItsFront(t *testing.T) {
	c := newCache(t, nil, func(o *tiered.Options) { o.Layout, o.HotBytes = smallLayout, 6*smallCost })
	c.SetView(smallView)
	f := newFamily()
	f.request(t, c, "abcdef")
	f.request(t, c, "x")
	f.request(t, c, "y")
	if n := f.request(t, c, "abcdef"); n != 4 {
		t.Errorf("a chain of 6 that lost 2 blocks serves %d, want 4", n)
	}
}

// Whatever is asked for in whatever order: the hot blocks of a family of prompts are closed under "the one before", so that none is in the tier
// without being of use, and the tier is full before anything leaves.
func TestHotChainsAreWholeFromTheirRoots(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		room := rapid.IntRange(2, 12).Draw(rt, "room")
		c := newCache(t, nil, func(o *tiered.Options) { o.Layout, o.HotBytes = smallLayout, int64(room)*smallCost })
		c.SetView(smallView)
		f := newFamily()
		all := map[block.Hash]block.Hash{} // every block that was put, and the one before it
		for range rapid.IntRange(1, 30).Draw(rt, "requests") {
			p := rapid.StringMatching(`[ab]{1,6}`).Draw(rt, "prompt")
			f.request(t, c, p)
			var before block.Hash
			for _, h := range f.chain(p) {
				all[h], before = before, h
			}
			hot := 0
			for h, parent := range all {
				if c.HotBlocks(smallView, []block.Hash{h}) == 0 {
					continue
				}
				hot++
				if parent != (block.Hash{}) && c.HotBlocks(smallView, []block.Hash{parent}) == 0 {
					rt.Fatalf("after %q a block is hot and the one before it is not", p)
				}
			}
			if want := min(room, len(all)); hot < want-1 && c.Stats().Evicted > 0 {
				rt.Fatalf("%d blocks hot, with room for %d", hot, room)
			}
		}
	})
}

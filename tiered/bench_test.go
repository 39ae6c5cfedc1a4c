package tiered_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// nowhere is a sink that takes no time.
type nowhere struct{ have int }

func (n *nowhere) Len() int                                { return n.have }
func (n *nowhere) Place(int, block.Part, []byte) error     { return nil }
func (n *nowhere) Skip(tokens int) error                   { n.have += tokens; return nil }
func (n *nowhere) Compute(_ context.Context, to int) error { n.have = to; return nil }

// A hot hit hands out views: its cost does not depend on the size of the blocks. With two goroutines, each brings a prompt of its own or
// both bring the same one; the time per block is that of both together.
func BenchmarkBringHot(b *testing.B) {
	for _, blocks := range []int{1, 8, 32} {
		c := newCache(b, nil, func(o *tiered.Options) { o.HotBytes = 1 << 30 })
		v := shared(generation(1, 1))
		c.SetView(v)
		run := func(name string, prompts ...int32) {
			b.Run(fmt.Sprintf("blocks=%d/%s", blocks, name), func(b *testing.B) {
				b.ReportAllocs()
				var wg sync.WaitGroup
				for _, seed := range prompts {
					put(b, c, v, seed, blocks)
					ns, hashes := chainOf(v.Generation, seed, blocks)
					wg.Go(func() {
						var s nowhere
						for range (b.N + len(prompts) - 1) / len(prompts) {
							s.have = 0
							if _, err := c.Bring(b.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes}, &s); err != nil || s.have != blocks*testLayout.BlockTokens {
								b.Errorf("%d tokens, %v", s.have, err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(blocks), "ns/block")
			})
		}
		run("goroutines=1", 7)
		run("goroutines=2/prompts=2", 7, 8)
		run("goroutines=2/prompts=1", 7, 7)
	}
}

// A block that is hot costs no allocation: what must not come back is counted, not timed.
func TestHotBlocksAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Log("pools drop things under the race detector")
		return
	}
	c := newCache(t, nil, nil)
	v := shared(generation(1, 1))
	c.SetView(v)
	put(t, c, v, 7, 8)
	ns, hashes := chainOf(v.Generation, 7, 8)
	var s nowhere
	if n := testing.AllocsPerRun(100, func() {
		s.have = 0
		if _, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes}, &s); err != nil || s.have != 8*testLayout.BlockTokens {
			t.Fatal(s.have, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations to bring 8 hot blocks", n)
	}
}

// A remote hit reads every byte once, into the memory it will be imported from, and verifies it there. The store is in memory: what is
// measured is everything but the network.
func BenchmarkBringRemote(b *testing.B) {
	const blocks = 8
	v := shared(generation(1, 1))
	remote := memstore.New(memstore.Options{MaxBytes: 1 << 30})
	a := newCache(b, remote, nil)
	a.SetView(v)
	put(b, a, v, 7, blocks)
	flush(b, a)
	// Nothing stays hot: every round fetches it anew.
	c := newCache(b, remote, func(o *tiered.Options) { o.HotBytes = tiered.NoHotTier })
	c.SetView(v)
	ns, hashes := chainOf(v.Generation, 7, blocks)
	b.SetBytes(int64(blocks * testLayout.BlockBytes()))
	b.ReportAllocs()
	for b.Loop() {
		var s nowhere
		out, err := c.Bring(b.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: gate.Always}, &s)
		if err != nil || out.Remote != blocks*testLayout.BlockTokens {
			b.Fatalf("%+v, %v; want %d blocks", out, err, blocks)
		}
	}
}

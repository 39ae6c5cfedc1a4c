package tiered_test

import (
	"fmt"
	"testing"

	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// A hot hit hands out views: its cost does not depend on the size of the blocks.
func BenchmarkFetchHot(b *testing.B) {
	for _, blocks := range []int{1, 32} {
		b.Run(fmt.Sprintf("blocks=%d", blocks), func(b *testing.B) {
			c := newCache(b, nil, nil)
			v := shared(generation(1, 1))
			c.SetView(v)
			put(b, c, v, 7, blocks)
			ns, hashes := chainOf(v.Generation, 7, blocks)
			b.ReportAllocs()
			for b.Loop() {
				f := c.Fetch(b.Context(), v, ns, hashes)
				for f.Next(b.Context()) {
					_ = f.Part(0)
				}
				f.Close()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(blocks), "ns/block")
		})
	}
}

// A remote hit reads every byte once, into the memory it will be imported from, and verifies it there. The store is in memory: what is
// measured is everything but the network.
func BenchmarkFetchRemote(b *testing.B) {
	const blocks = 8
	v := shared(generation(1, 1))
	remote := memstore.New(memstore.Options{MaxBytes: 1 << 30})
	a := newCache(b, remote, nil)
	a.SetView(v)
	put(b, a, v, 7, blocks)
	flush(b, a)
	// A tier with room for less than the chain: every round fetches it anew.
	c := newCache(b, remote, func(o *tiered.Options) { o.HotBytes = 1 << 20 })
	c.SetView(v)
	ns, hashes := chainOf(v.Generation, 7, blocks)
	b.SetBytes(int64(blocks * testLayout.BlockBytes()))
	b.ReportAllocs()
	for b.Loop() {
		f := c.Fetch(b.Context(), v, ns, hashes)
		n := 0
		for f.Next(b.Context()) {
			n++
		}
		f.Close()
		if n != blocks {
			b.Fatalf("%d of %d blocks", n, blocks)
		}
	}
}

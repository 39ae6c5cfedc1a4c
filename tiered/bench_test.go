package tiered_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// A hot hit hands out views: its cost does not depend on the size of the blocks. With two goroutines, each walks a prompt of its own or
// both walk the same one; the time per block is that of both together.
func BenchmarkFetchHot(b *testing.B) {
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
						f := new(tiered.Fetch)
						for range (b.N + len(prompts) - 1) / len(prompts) {
							c.FetchInto(b.Context(), f, v, ns, hashes)
							for f.Next(b.Context()) {
								_ = f.Part(0)
							}
							f.Close()
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

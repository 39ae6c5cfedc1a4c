package tiered_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
	"github.com/kvtier/kvtier/tiered"
)

// Whatever two workers, a swapping, purging coordinator and a store that evicts, fails and corrupts do in whatever order: a block that is
// served was computed by the resident weights for exactly this prefix. Every payload says what computed it; fetch compares.
func TestServedBlocksAreAlwaysRight(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := memstore.New(memstore.Options{MaxBytes: int64(rapid.SampledFrom([]int{40, 400}).Draw(rt, "storeMiB")) << 20})
		faulty := storetest.NewFaulty(mem)
		policy := rapid.SampledFrom([]tiered.WritePolicy{tiered.WriteThrough, tiered.WriteOnEvict, tiered.WriteOnSecondHit}).Draw(rt, "policy")
		caches := make([]*tiered.Cache, 2)
		views := make([]tiered.View, 2)
		for i := range caches {
			caches[i] = newCache(t, faulty, func(o *tiered.Options) {
				o.HotBytes, o.SpillBytes, o.WritePolicy = 20<<20, 12<<20, policy
			})
			views[i] = shared(generation(1, 1))
			caches[i].SetView(views[i])
		}
		anyCache := func() int { return rapid.IntRange(0, 1).Draw(rt, "worker") }
		seed := func() int32 { return rapid.Int32Range(1, 3).Draw(rt, "prompt") }
		length := func() int { return rapid.IntRange(1, 4).Draw(rt, "blocks") }
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(*rapid.T) {
				i := anyCache()
				put(t, caches[i], views[i], seed(), length())
			},
			"fetch": func(*rapid.T) {
				i := anyCache()
				fetch(t, caches[i], views[i], seed(), length()) // fails the test on a wrong payload
			},
			"late put of the view before": func(*rapid.T) {
				i := anyCache()
				before := views[i]
				views[i] = shared(generation(byte(rapid.IntRange(1, 2).Draw(rt, "weights")), views[i].Epoch+1))
				caches[i].SetView(views[i])
				put(t, caches[i], before, seed(), length())
				fetch(t, caches[i], views[i], seed(), length())
			},
			"swap": func(*rapid.T) {
				i := anyCache()
				views[i] = shared(generation(byte(rapid.IntRange(1, 2).Draw(rt, "weights")), block.Epoch(rapid.IntRange(1, 2).Draw(rt, "epoch"))))
				caches[i].SetView(views[i])
			},
			"fault": func(*rapid.T) {
				faulty.Inject(storetest.Fault{Op: rapid.SampledFrom([]storetest.Op{storetest.Lead, storetest.Get, storetest.Put}).Draw(rt, "op"), Count: 1})
			},
			"corrupt": func(*rapid.T) { faulty.Inject(storetest.Fault{Op: storetest.Get, Count: 1, Corrupt: true}) },
			"cut":     func(*rapid.T) { faulty.Inject(storetest.Fault{Op: storetest.Get, Count: 1, Truncate: 1}) },
			"flush": func(*rapid.T) {
				faulty.Heal()
				if policy == tiered.WriteThrough {
					flush(t, caches[anyCache()])
				}
			},
			"": func(rt *rapid.T) {
				for i, c := range caches {
					if s := c.Stats(); s.HotBytes > s.HotMaxBytes || s.SpillBytes > s.SpillMaxBytes || s.FillingBytes < 0 {
						rt.Fatalf("worker %d beyond a bound: %+v", i, s)
					}
				}
			},
		})
	})
}

package tiered_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// A miss says what became of the block, as far as this worker knows.
func TestAMissSaysWhatBecameOfTheBlock(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(t *testing.T, c *tiered.Cache, remote store.Store, v *tiered.View, keys []string)
		want    map[string]int64 // misses of three blocks, by reason
	}{
		"nothing is known of it": {func(t *testing.T, c *tiered.Cache, _ store.Store, v *tiered.View, _ []string) {
			*v = shared(generation(2, 1)) // other weights, other hashes
			c.SetView(*v)
		}, map[string]int64{"cold": 3}},
		"purged": {func(_ *testing.T, c *tiered.Cache, _ store.Store, v *tiered.View, _ []string) {
			v.Epoch++
			c.SetView(*v)
		}, map[string]int64{"epoch": 3}},
		"evicted from both": {func(t *testing.T, c *tiered.Cache, remote store.Store, v *tiered.View, keys []string) {
			put(t, c, *v, 99, 3) // the hot tier has room for three
			if _, err := remote.Delete(t.Context(), keys); err != nil {
				t.Fatal(err)
			}
		}, map[string]int64{"evicted": 3}},
		"expired": {func(t *testing.T, c *tiered.Cache, _ store.Store, v *tiered.View, _ []string) {
			put(t, c, *v, 99, 3)
			time.Sleep(2 * time.Hour)
		}, map[string]int64{"expired": 3}},
		"one part is missing": {func(t *testing.T, c *tiered.Cache, remote store.Store, v *tiered.View, keys []string) {
			put(t, c, *v, 99, 3)
			if _, err := remote.Delete(t.Context(), keys[1:2]); err != nil {
				t.Fatal(err)
			}
		}, map[string]int64{"incomplete": 1, "evicted": 2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				remote := memstore.New(memstore.Options{})
				cache := newCache(t, remote, func(o *tiered.Options) { o.HotBytes, o.TTL = 13<<20, time.Hour })
				v := shared(generation(1, 1))
				cache.SetView(v)
				put(t, cache, v, 7, 3)
				flush(t, cache)
				_, hashes := chainOf(v.Generation, 7, 3)
				var keys []string
				for _, h := range hashes {
					for p := range testLayout.PartCount() {
						keys = append(keys, block.Key(v.Identity.Variant(), v.Epoch, h, p))
					}
				}
				c.happens(t, cache, remote, &v, keys)
				fetch(t, cache, v, 7, 3)
				got := cache.Stats().MissBlocks
				for reason, n := range got {
					if n != c.want[reason] {
						t.Errorf("%d blocks missed as %s, want %d; all: %v", n, reason, c.want[reason], got)
					}
				}
			})
		})
	}
}

// While the breaker is open, the way from the back costs no question, and says why.
func TestAnOpenBreakerIsNotAsked(t *testing.T) {
	sick := &gated{Store: memstore.New(memstore.Options{})}
	fault := error(context.DeadlineExceeded)
	sick.fail.Store(&fault)
	breaker := store.WithBreaker(sick, store.BreakerOptions{Faults: 1, MinDelay: time.Hour})
	_, _ = breaker.Lead(t.Context(), []string{"k"})
	c := newCache(t, breaker, nil)
	v := shared(generation(1, 1))
	c.SetView(v)
	ns, hashes := chainOf(v.Generation, 7, 3)
	asked := sick.leads.Load()
	f := c.FetchHot(v, ns, hashes, 0)
	b := f.Back()
	b.Ask()
	if !b.Answered(t.Context(), 0) || b.End() != 0 {
		t.Error("an answer was waited for")
	}
	f.Close()
	if f.Miss() != tiered.MissBreaker || sick.leads.Load() != asked || c.Stats().MissBlocks["breaker"] != 3 {
		t.Errorf("miss %v, %d questions, %v", f.Miss(), sick.leads.Load()-asked, c.Stats().MissBlocks)
	}
}

// From the back: blocks come in reverse, those that are given up do not come, and all are given back.
func TestBackHandsOutTheEndOfAChain(t *testing.T) {
	v := shared(generation(1, 1))
	c := newCache(t, filled(t, v, 7, 6), nil)
	c.SetView(v)
	ns, hashes := chainOf(v.Generation, 7, 8)
	f := c.FetchHot(v, ns, hashes, 0)
	b := f.Back()
	b.Ask()
	if !b.Answered(t.Context(), time.Minute) || b.End() != 6 {
		t.Fatalf("%d blocks found, want 6", b.End())
	}
	b.Begin(tiered.Plan{Choice: tiered.ChooseMeasure})
	b.Until(2)
	for want := 5; want >= 2; want-- {
		if !b.Next(t.Context(), time.Minute) || b.Low() != want {
			t.Fatalf("block %d, want %d", b.Low(), want)
		}
		checkStamp(t, b.Part(1), v.Generation, hashes[want], 1)
	}
	if b.Next(t.Context(), time.Minute) || !b.Over() || !b.Take() {
		t.Error("more came than was wanted")
	}
	f.Close()
	if s := c.Stats(); f.Blocks(tiered.Remote) != 4 || s.MissBlocks["gate"] != 2 || s.MissBlocks["cold"] != 2 || s.LookupBlocks != 8 {
		t.Errorf("%d blocks used; %+v", f.Blocks(tiered.Remote), s)
	}
	flush(t, c)
}

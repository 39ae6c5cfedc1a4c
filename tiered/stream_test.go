package tiered_test

import (
	"sync"
	"testing"

	"github.com/kvtier/kvtier/tiered"
)

// A run longer than what may be under way is served whole to a consumer that keeps up, and the bound holds meanwhile.
func TestLongRunsStreamWithinTheBound(t *testing.T) {
	const limit = 10 << 20 // two blocks
	v := shared(generation(1, 1))
	c := newCache(t, filled(t, v, 7, 9), func(o *tiered.Options) { o.FillBytes = limit })
	c.SetView(v)
	ns, hashes := chainOf(v.Generation, 7, 9)
	f := c.Fetch(t.Context(), v, ns, hashes)
	n := 0
	for ; f.Next(t.Context()); n++ {
		checkStamp(t, f.Part(1), v.Generation, hashes[n], 1)
		if s := c.Stats(); s.FillingBytes > limit {
			t.Fatalf("%d bytes being filled, bound is %d", s.FillingBytes, limit)
		}
	}
	if n != 9 || f.Miss() != tiered.MissNone {
		t.Errorf("%d of 9 blocks, miss %v", n, f.Miss())
	}
	f.Close()
	if s := c.Stats(); s.FillingBytes != 0 || s.HitBlocks["remote"] != 9 {
		t.Errorf("afterwards %d bytes being filled, %d hits", s.FillingBytes, s.HitBlocks["remote"])
	}
}

// Requests that share too little room for both neither wait for each other nor exceed it: each gets what it can, and whoever consumes goes on.
func TestLongRunsDoNotWaitForEachOther(t *testing.T) {
	v := shared(generation(1, 1))
	remote := filled(t, v, 1, 8)
	other := newCache(t, remote, nil)
	other.SetView(v)
	put(t, other, v, 2, 8)
	flush(t, other)
	c := newCache(t, remote, func(o *tiered.Options) { o.FillBytes = 10 << 20 })
	c.SetView(v)
	ns, first := chainOf(v.Generation, 1, 8)
	_, second := chainOf(v.Generation, 2, 8)
	a := c.Fetch(t.Context(), v, ns, first)
	defer a.Close()
	if !a.Next(t.Context()) {
		t.Fatal("no first block")
	}
	b := c.Fetch(t.Context(), v, ns, second) // all room is a's
	if b.Next(t.Context()) || b.Miss() != tiered.MissBudget {
		t.Errorf("the second request got a block beyond the bound, miss %v", b.Miss())
	}
	b.Close()
	n := 1
	for a.Next(t.Context()) {
		n++
	}
	if n != 8 {
		t.Errorf("the first request got %d of 8 blocks, miss %v", n, a.Miss())
	}
	var wg sync.WaitGroup
	for seed := range int32(2) {
		wg.Go(func() { fetch(t, c, v, 1+seed, 8) }) // under -race: streams interleave
	}
	wg.Wait()
	if s := c.Stats(); s.FillingBytes > 10<<20 {
		t.Errorf("%d bytes being filled", s.FillingBytes)
	}
}

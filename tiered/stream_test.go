package tiered_test

import (
	"sync"
	"testing"

	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/tiered"
)

// A run longer than what may be under way is served whole to a consumer that keeps up, and the bound holds meanwhile.
func TestLongRunsStreamWithinTheBound(t *testing.T) {
	const limit = 10 << 20 // two blocks
	v := shared(generation(1, 1))
	c := newCache(t, filled(t, v, 7, 9), func(o *tiered.Options) { o.FillBytes = limit })
	c.SetView(v)
	ns, hashes := chainOf(v.Generation, 7, 9)
	s := newSequence(t, testLayout, 0, stamped(t, v.Generation, hashes))
	s.before = func(string, int) {
		if s := c.Stats(); s.FillingBytes > limit {
			t.Fatalf("%d bytes being filled, bound is %d", s.FillingBytes, limit)
		}
	}
	out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: gate.Always}, s)
	if err != nil || out.Remote != 9*testLayout.BlockTokens || out.Miss != tiered.MissNone {
		t.Errorf("%+v, %v; want 9 blocks", out, err)
	}
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
	a, asked := newSequence(t, testLayout, 0, stamped(t, v.Generation, first)), false
	a.before = func(call string, i int) {
		if call != "place" || asked {
			return
		}
		asked = true // all room is a's
		b := newSequence(t, testLayout, 0, stamped(t, v.Generation, second))
		out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: second, Mode: gate.Always}, b)
		if err != nil || out.Remote != 0 || out.Miss != tiered.MissBudget {
			t.Errorf("the second request got blocks beyond the bound: %+v, %v", out, err)
		}
	}
	out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: first, Mode: gate.Always}, a)
	if err != nil || out.Remote != 8*testLayout.BlockTokens {
		t.Errorf("the first request got %+v, %v; want 8 blocks", out, err)
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

package tiered_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// computing is a prompt that takes a second to compute and little to load.
var computing = gate.Claim{Compute: time.Second, Load: 50 * time.Millisecond, RTT: time.Millisecond}

func claiming(t *testing.T, remote store.Store, change func(*tiered.Options)) *tiered.Cache {
	c := newCache(t, remote, func(o *tiered.Options) {
		o.Layout, o.FillLease = smallLayout, true
		if change != nil {
			change(o)
		}
	})
	c.SetView(smallView)
	return c
}

func TestFillIsLeftToWhoIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := memstore.New(memstore.Options{}), newFamily()
		first, second := claiming(t, remote, nil), claiming(t, remote, nil)
		missing := f.chain("abcd")
		if w := first.Claim(t.Context(), smallView, missing, computing); w != nil {
			t.Fatal("the first does not compute")
		}
		time.Sleep(900 * time.Millisecond)
		w := second.Claim(t.Context(), smallView, missing, computing)
		if w == nil {
			t.Fatal("the second does not look out for what is nearly there")
		}
		defer w.Stop()
		time.AfterFunc(100*time.Millisecond, func() { f.request(t, first, "abcd") })
		start := time.Now()
		n := w.Pause(t.Context())
		if d := time.Since(start); n != 4 || d > 200*time.Millisecond {
			t.Errorf("%d of 4 blocks after %v", n, d)
		}
		if s := second.Stats(); s.FillWatched != 1 || s.FillFound != 1 || first.Stats().FillClaims != 1 {
			t.Errorf("Stats: %+v", s)
		}
	})
}

// In each of these the caller computes at once.
func TestFillIsNotLeftToOthers(t *testing.T) {
	for name, x := range map[string]struct {
		after  time.Duration // the first claim
		first  gate.Claim
		second gate.Claim
		change func(*tiered.Options)
	}{
		"both begin":              {0, computing, computing, nil},
		"the holder is slower":    {100 * time.Millisecond, gate.Claim{Compute: 5 * time.Second}, computing, nil},
		"the holder is overdue":   {1900 * time.Millisecond, computing, computing, nil},
		"it is quickly computed":  {900 * time.Millisecond, computing, gate.Claim{Compute: 20 * time.Millisecond}, nil},
		"questions take long":     {900 * time.Millisecond, computing, gate.Claim{Compute: time.Second, RTT: 20 * time.Millisecond}, nil},
		"loading takes long":      {900 * time.Millisecond, computing, gate.Claim{Compute: time.Second, Load: 800 * time.Millisecond}, nil},
		"nothing is stored":       {900 * time.Millisecond, computing, computing, func(o *tiered.Options) { o.WritePolicy = tiered.WriteOnEvict }},
		"it is switched off":      {900 * time.Millisecond, computing, computing, func(o *tiered.Options) { o.FillLease = false }},
		"the claim has ended":     {20 * time.Second, computing, computing, nil},
		"nothing can be expected": {900 * time.Millisecond, gate.Claim{Compute: time.Hour}, computing, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				remote, f := memstore.New(memstore.Options{}), newFamily()
				first, second := claiming(t, remote, x.change), claiming(t, remote, x.change)
				first.Claim(t.Context(), smallView, f.chain("ab"), x.first)
				time.Sleep(x.after)
				start := time.Now()
				if w := second.Claim(t.Context(), smallView, f.chain("ab"), x.second); w != nil {
					w.Stop()
					t.Error("it looks out for blocks")
				}
				if d := time.Since(start); d != 0 {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

// The holder dies: that costs a fifth of the time to compute, once.
func TestFillHolderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := memstore.New(memstore.Options{}), newFamily()
		first, second := claiming(t, remote, nil), claiming(t, remote, nil)
		first.Claim(t.Context(), smallView, f.chain("ab"), computing)
		time.Sleep(950 * time.Millisecond)
		w := second.Claim(t.Context(), smallView, f.chain("ab"), computing)
		if w == nil {
			t.Fatal("no watch")
		}
		start := time.Now()
		if n := w.Pause(t.Context()); n != 0 || time.Since(start) > computing.Compute/4 {
			t.Errorf("%d blocks after %v", n, time.Since(start))
		}
		time.Sleep(computing.Compute) // computes meanwhile
		if !w.Over() {
			t.Error("still looking out")
		}
		w.Stop()
	})
}

// The claim names variant and epoch: what is computed for one is none of another's business.
func TestFillOfAnotherEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := memstore.New(memstore.Options{}), newFamily()
		first, second := claiming(t, remote, nil), claiming(t, remote, nil)
		first.Claim(t.Context(), smallView, f.chain("ab"), computing)
		next := smallView
		next.Epoch++
		second.SetView(next)
		time.Sleep(900 * time.Millisecond)
		if w := second.Claim(t.Context(), next, f.chain("ab"), computing); w != nil {
			w.Stop()
			t.Error("waits for blocks of an older epoch")
		}
		if w := second.Claim(t.Context(), smallView, f.chain("ab"), computing); w != nil {
			w.Stop()
			t.Error("waits under a view that has ended")
		}
	})
}

// refusing is a store whose claims fail, or say what nobody would.
type refusing struct {
	store.Store
	lease store.Lease
	err   error
	delay time.Duration
	calls int
}

func (r *refusing) Lease(ctx context.Context, _, _ string, _ time.Duration) (store.Lease, error) {
	r.calls++
	select {
	case <-time.After(r.delay):
		return r.lease, r.err
	case <-ctx.Done():
		return store.Lease{}, ctx.Err()
	}
}

func TestFillClaimsThatFail(t *testing.T) {
	for name, r := range map[string]*refusing{
		"not allowed":   {err: errors.New("NOPERM")},
		"slow":          {delay: time.Hour},
		"no note":       {lease: store.Lease{Left: time.Second}},
		"words":         {lease: store.Lease{Note: "tomorrow", Left: time.Second}},
		"negative":      {lease: store.Lease{Note: "-5", Left: time.Second}},
		"huge":          {lease: store.Lease{Note: "9999999999999", Left: time.Second}},
		"from tomorrow": {lease: store.Lease{Note: "100", Left: time.Hour}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r.Store = memstore.New(memstore.Options{})
				c, f := claiming(t, r, nil), newFamily()
				start := time.Now()
				for range 5 {
					if w := c.Claim(t.Context(), smallView, f.chain("ab"), computing); w != nil {
						w.Stop()
						t.Error("waits")
					}
				}
				if d := time.Since(start); d > 5*computing.Compute/50 {
					t.Errorf("took %v", d)
				}
				if r.err != nil && r.calls != 1 {
					t.Errorf("asked %d times although it fails", r.calls)
				}
			})
		})
	}
}

func TestLeaseKeysAreNoDataKeys(t *testing.T) {
	h := newFamily().chain("a")[0]
	k := block.LeaseKey(smallView.Identity.Variant(), 7, h)
	if want := block.LeasePrefix + smallView.Identity.Variant().String() + ":7:"; k[:len(want)] != want || len(k) > store.MaxKeyBytes {
		t.Errorf("%s, want it to begin with %s", k, want)
	}
}

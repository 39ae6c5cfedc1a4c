package tiered_test

import (
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
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
	s := newSequence(t, testLayout, 0, nil)
	out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes}, s)
	if err != nil || out.Miss != tiered.MissBreaker || out.Degraded == 0 || sick.leads.Load() != asked || c.Stats().MissBlocks["breaker"] != 3 {
		t.Errorf("%+v, %v, %d questions, %v", out, err, sick.leads.Load()-asked, c.Stats().MissBlocks)
	}
}

// measured is a cache whose remote tier is known to be so fast, as far as it can tell.
func prefillOf(perToken time.Duration) *gate.PrefillMeter {
	m := new(gate.PrefillMeter)
	m.Observe(0, 1<<16, perToken<<16)
	return m
}

// Where loading takes about as long as computing, both are done at once, until they meet: what was given up is not fetched, and no token is
// both computed and fetched.
func TestTheTwoEndsMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := shared(generation(1, 1))
		const blocks, perToken = 12, time.Millisecond
		remote := &timed{Store: filled(t, v, 7, blocks), perBlock: time.Duration(testLayout.BlockTokens) * perToken}
		c := newCache(t, remote, func(o *tiered.Options) { o.HotBytes = tiered.NoHotTier })
		c.SetView(v)
		ns, hashes := chainOf(v.Generation, 7, blocks+2)
		for round := range 3 {
			s := newSequence(t, testLayout, 0, stamped(t, v.Generation, hashes))
			s.delay = func(tokens int) { time.Sleep(time.Duration(tokens) * perToken) }
			start := time.Now()
			out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Prefill: prefillOf(perToken)}, s)
			if err != nil {
				t.Fatal(err)
			}
			consistent(t, out, s, len(hashes))
			took, all := time.Since(start), blocks*time.Duration(testLayout.BlockTokens)*perToken
			if got := out.Remote + out.Computed; got != blocks*testLayout.BlockTokens {
				t.Errorf("round %d: %+v, want %d tokens", round, out, blocks*testLayout.BlockTokens)
			}
			if round > 0 && (out.Computed == 0 || out.Remote == 0 || took > all*3/4) { // the first measures
				t.Errorf("round %d took %v of the %v of either way: %+v", round, took, all, out)
			}
		}
		flush(t, c)
	})
}

// timed is a store from which a block takes its time.
type timed struct {
	store.Store
	perBlock time.Duration
}

func (s *timed) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for n, err := range s.Store.Get(ctx, keys, bufs) {
			time.Sleep(s.perBlock / time.Duration(testLayout.PartCount()))
			if !yield(n, err) {
				return
			}
		}
	}
}

// A request whose client has gone ends at once, wherever it is, and does not look again and again.
func TestACancelledRequestEnds(t *testing.T) {
	for _, mode := range []gate.Mode{gate.Always, gate.Auto} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := shared(generation(1, 1))
				remote := &gated{Store: filled(t, v, 7, 6), enter: make(chan struct{}, 9), pass: make(chan struct{})}
				c := newCache(t, remote, nil)
				c.SetView(v)
				ns, hashes := chainOf(v.Generation, 7, 6)
				ctx, cancel := context.WithCancel(t.Context())
				s := newSequence(t, testLayout, 0, stamped(t, v.Generation, hashes))
				calls := 0
				s.before = func(string, int) { calls++ }
				start, done := time.Now(), make(chan error)
				go func() {
					_, err := c.Bring(ctx, tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: mode}, s)
					done <- err
				}()
				<-remote.enter
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) || time.Since(start) != 0 || calls > 1 {
					t.Errorf("ended with %v after %v and %d calls", err, time.Since(start), calls)
				}
				close(remote.pass)
			})
		})
	}
}

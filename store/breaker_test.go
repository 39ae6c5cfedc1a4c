package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
)

// sick returns a breaker over a store that fails on command.
func sick(o store.BreakerOptions) (*store.Breaker, *storetest.Faulty) {
	f := storetest.NewFaulty(memstore.New(memstore.Options{}))
	return store.WithBreaker(f, o), f
}

func trip(t *testing.T, b *store.Breaker, f *storetest.Faulty) {
	t.Helper()
	f.Inject(storetest.Fault{})
	for i := 0; b.State() == store.BreakerClosed; i++ {
		if i == 100 {
			t.Fatal("the breaker does not open")
		}
		_ = b.Ping(t.Context())
	}
}

func TestBreakerOpensAfterFaultsInARow(t *testing.T) {
	b, f := sick(store.BreakerOptions{Faults: 3})
	for range 2 {
		f.Inject(storetest.Fault{Op: storetest.Lead, Count: 2})
		for range 3 { // two faults and a success
			_, _ = b.Lead(t.Context(), []string{"a"})
		}
	}
	if got := b.State(); got != store.BreakerClosed {
		t.Fatalf("State after faults that were not in a row = %v", got)
	}
	trip(t, b, f)
	calls := f.Calls(storetest.Get)
	n := 0
	for _, err := range b.Get(t.Context(), []string{"a", "b"}, make([][]byte, 2)) {
		if !errors.Is(err, store.ErrUnavailable) || store.IsFault(err) {
			t.Errorf("Get of an open breaker: %v", err)
		}
		n++
	}
	if n != 2 || f.Calls(storetest.Get) != calls {
		t.Errorf("Get of an open breaker yielded %d times and asked the store %d times", n, f.Calls(storetest.Get)-calls)
	}
}

func TestBreakerIgnoresAnswers(t *testing.T) {
	b, f := sick(store.BreakerOptions{Faults: 1})
	for _, err := range []error{store.ErrNotFound, store.ErrFull, store.ErrTooLarge, store.ErrInvalid, store.ErrClosed, context.Canceled} {
		f.Heal()
		f.Inject(storetest.Fault{Err: fmt.Errorf("wrapped: %w", err)})
		_ = b.Put(t.Context(), make([]store.Item, 1), time.Second)
		if got := b.State(); got != store.BreakerClosed {
			t.Errorf("State after %v = %v", err, got)
		}
	}
	past, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	_ = b.Ping(past) // the store was not asked
	if got := b.State(); got != store.BreakerClosed {
		t.Errorf("State after a call that came too late = %v", got)
	}
}

func TestBreakerCountsTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storetest.NewFaulty(memstore.New(memstore.Options{}))
		b := store.WithBreaker(store.WithDeadlines(f, store.Deadlines{Lead: time.Second}), store.BreakerOptions{Faults: 2})
		f.Inject(storetest.Fault{Delay: time.Hour})
		start := time.Now()
		for range 2 {
			if _, err := b.Lead(t.Context(), []string{"a"}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Lead: %v", err)
			}
		}
		if d := time.Since(start); d != 2*time.Second || b.State() != store.BreakerOpen {
			t.Errorf("after %v: %v", d, b.State())
		}
	})
}

func TestBreakerHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []string
		b, f := sick(store.BreakerOptions{Jitter: -1, OnStateChange: func(from, to store.BreakerState) {
			log = append(log, fmt.Sprintf("%v>%v", from, to))
		}})
		trip(t, b, f)
		for _, delay := range []int{1, 2, 4, 8, 16, 30, 30} {
			time.Sleep(time.Duration(delay)*time.Second - time.Millisecond)
			calls := f.Calls(storetest.Ping)
			if err := b.Ping(t.Context()); !errors.Is(err, store.ErrUnavailable) || f.Calls(storetest.Ping) != calls {
				t.Fatalf("just before %d s: %v", delay, err)
			}
			time.Sleep(time.Millisecond)
			if err := b.Ping(t.Context()); !errors.Is(err, storetest.ErrInjected) {
				t.Fatalf("probe after %d s: %v", delay, err)
			}
		}
		f.Heal()
		time.Sleep(30 * time.Second)
		if err := b.Ping(t.Context()); err != nil || b.State() != store.BreakerClosed {
			t.Fatalf("after recovery: %v, %v", err, b.State())
		}
		want := []string{"closed>open"}
		for range 7 {
			want = append(want, "open>half-open", "half-open>open")
		}
		want = append(want, "open>half-open", "half-open>closed")
		if !slices.Equal(log, want) {
			t.Errorf("changes\n got %v\nwant %v", log, want)
		}
		trip(t, b, f) // the delay starts anew
		f.Heal()
		time.Sleep(time.Second)
		if err := b.Ping(t.Context()); err != nil {
			t.Errorf("after a second trip: %v", err)
		}
	})
}

func TestBreakerJitterShortens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 10 {
			b, f := sick(store.BreakerOptions{Jitter: 0.5})
			trip(t, b, f)
			start := time.Now()
			for b.State() == store.BreakerOpen && time.Since(start) < 2*time.Second {
				time.Sleep(time.Millisecond)
				f.Heal()
				_ = b.Ping(t.Context())
			}
			d := time.Since(start)
			if d < 500*time.Millisecond || d > 1001*time.Millisecond {
				t.Errorf("healed after %v", d)
			}
			seen[d] = true
		}
		if len(seen) < 2 {
			t.Error("no jitter")
		}
	})
}

// A call that began before the trip and ends well during the probe must not close the breaker, and one that ends badly must not
// open it again.
func TestBreakerIgnoresResultsFromBeforeTheTrip(t *testing.T) {
	for name, late := range map[string]error{"success": nil, "fault": storetest.ErrInjected} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, f := sick(store.BreakerOptions{Jitter: -1})
				var wg sync.WaitGroup
				f.Inject(storetest.Fault{Op: storetest.Lead, Count: 1, Delay: 1500 * time.Millisecond, Err: late})
				wg.Go(func() { _, _ = b.Lead(t.Context(), []string{"a"}) }) // ends at 1.5 s
				synctest.Wait()
				trip(t, b, f)
				f.Heal()
				time.Sleep(time.Second)
				f.Inject(storetest.Fault{Op: storetest.Delete, Count: 1, Delay: time.Second})
				wg.Go(func() { _, _ = b.Delete(t.Context(), []string{"a"}) }) // the probe, ends at 2 s
				synctest.Wait()
				time.Sleep(700 * time.Millisecond)
				if got := b.State(); got != store.BreakerHalfOpen {
					t.Errorf("State after the late result = %v, want half-open", got)
				}
				wg.Wait()
				if got := b.State(); got != store.BreakerClosed {
					t.Errorf("State after the probe = %v, want closed", got)
				}
			})
		})
	}
}

func TestBreakerSendsOneProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, f := sick(store.BreakerOptions{Jitter: -1})
		trip(t, b, f)
		f.Heal()
		f.Inject(storetest.Fault{Delay: time.Second})
		time.Sleep(time.Second)
		before := f.Calls(storetest.Ping)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _ = b.Ping(t.Context()) })
		}
		wg.Wait()
		if n := f.Calls(storetest.Ping) - before; n != 1 {
			t.Errorf("%d probes, want 1", n)
		}
	})
}

// A probe whose caller went away, or never comes back, must not keep the breaker from healing.
func TestBreakerSurvivesLostProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, f := sick(store.BreakerOptions{Jitter: -1})
		trip(t, b, f)
		f.Heal()
		f.Inject(storetest.Fault{Op: storetest.Lead, Delay: time.Hour})
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, nil)
		gone, leave := context.WithCancel(ctx)
		time.AfterFunc(100*time.Millisecond, leave)
		_, err := b.Lead(gone, []string{"a"})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Lead: %v", err)
		}
		if err := b.Ping(t.Context()); err != nil || b.State() != store.BreakerClosed {
			t.Errorf("after a cancelled probe: %v, %v", err, b.State())
		}

		trip(t, b, f)
		f.Heal()
		f.Inject(storetest.Fault{Op: storetest.Lead, Delay: time.Hour})
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = b.Lead(t.Context(), []string{"a"}) })
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if err := b.Ping(t.Context()); err != nil || b.State() != store.BreakerClosed {
			t.Errorf("after a probe that hangs: %v, %v", err, b.State())
		}
		wg.Wait()
	})
}

// The loop body of a probe may take its time: the first answer has healed the breaker.
func TestBreakerHealsWithFirstYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, f := sick(store.BreakerOptions{Jitter: -1})
		trip(t, b, f)
		f.Heal()
		time.Sleep(time.Second)
		for range b.Get(t.Context(), []string{"a", "b"}, make([][]byte, 2)) {
			if got := b.State(); got != store.BreakerClosed {
				t.Errorf("State in the loop = %v", got)
			}
		}
	})
}

func TestBreakerCallbackMayCallBack(t *testing.T) {
	var b *store.Breaker
	calls := 0
	f := storetest.NewFaulty(memstore.New(memstore.Options{}))
	b = store.WithBreaker(f, store.BreakerOptions{OnStateChange: func(_, to store.BreakerState) {
		calls++
		if b.State() != to {
			t.Errorf("State in the callback = %v, want %v", b.State(), to)
		}
		_ = b.Ping(context.Background())
	}})
	trip(t, b, f)
	if calls != 1 {
		t.Errorf("%d callbacks", calls)
	}
}

func BenchmarkBreaker(b *testing.B) {
	br, f := sick(store.BreakerOptions{MinDelay: time.Hour, MaxDelay: time.Hour})
	keys := []string{"a"}
	bufs := [][]byte{make([]byte, 8)}
	b.Run("closed/Lead", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = br.Lead(b.Context(), keys)
		}
	})
	f.Inject(storetest.Fault{})
	for br.State() != store.BreakerOpen {
		_ = br.Ping(b.Context())
	}
	b.Run("open/Lead", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = br.Lead(b.Context(), keys)
		}
	})
	_ = bufs
}

// With a probe of its own the breaker heals without traffic, within two seconds of the recovery, and no call pays for finding out.
func TestBreakerProbesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storetest.NewFaulty(memstore.New(memstore.Options{}))
		b := store.WithBreaker(f, store.BreakerOptions{Faults: 2, Jitter: -1, Probe: f.Ping})
		defer b.Close()
		for round := range 2 {
			f.Inject(storetest.Fault{})
			for range 2 {
				_, _ = b.Lead(t.Context(), []string{"a"})
			}
			pings, leads := f.Calls(storetest.Ping), f.Calls(storetest.Lead)
			for range 100 { // at 0, 1, … 99 s
				if _, err := b.Lead(t.Context(), []string{"a"}); !errors.Is(err, store.ErrUnavailable) || b.Admits() {
					t.Fatalf("round %d: Lead of an open breaker: %v", round, err)
				}
				time.Sleep(time.Second)
			}
			if n := f.Calls(storetest.Lead) - leads; n != 0 {
				t.Errorf("round %d: %d calls were used as probes", round, n)
			}
			if n := f.Calls(storetest.Ping) - pings; n != 50 { // at 1, 3, 5, … 99 s
				t.Errorf("round %d: %d probes in 100 s, want 50", round, n)
			}
			f.Heal()
			time.Sleep(2 * time.Second)
			if got := b.State(); got != store.BreakerClosed {
				t.Errorf("round %d: State 2 s after the recovery = %v", round, got)
			}
			pings = f.Calls(storetest.Ping)
			time.Sleep(time.Minute)
			if n := f.Calls(storetest.Ping) - pings; n != 0 {
				t.Errorf("round %d: %d probes of a store that is well", round, n)
			}
		}
	})
}

// Whatever a probe meets, it neither spins nor outlives the breaker.
func TestBreakerProbesEnd(t *testing.T) {
	for name, c := range map[string]struct {
		probe  func(context.Context) error
		probes int32 // in a minute
		want   store.BreakerState
	}{
		"hangs":            {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 15, store.BreakerOpen}, // 2 s each, and 2 s between
		"says nothing":     {func(context.Context) error { return context.Canceled }, 60, store.BreakerOpen},
		"is closed":        {func(context.Context) error { return store.ErrClosed }, 1, store.BreakerHalfOpen},
		"one node's":       {func(context.Context) error { return fmt.Errorf("%w: %w", store.ErrNode, storetest.ErrInjected) }, 1, store.BreakerClosed},
		"a guarded node's": {func(context.Context) error { return store.ErrUnavailable }, 1, store.BreakerClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var probes atomic.Int32
				f := storetest.NewFaulty(memstore.New(memstore.Options{}))
				b := store.WithBreaker(f, store.BreakerOptions{Faults: 1, Jitter: -1, Probe: func(ctx context.Context) error {
					probes.Add(1)
					return c.probe(ctx)
				}})
				f.Inject(storetest.Fault{})
				_ = b.Ping(t.Context())
				time.Sleep(time.Minute + time.Millisecond)
				if n := probes.Load(); n != c.probes {
					t.Errorf("%d probes in a minute, want %d", n, c.probes)
				}
				if got := b.State(); got != c.want {
					t.Errorf("State = %v, want %v", got, c.want)
				}
				_ = b.Close() // else the bubble does not end
				synctest.Wait()
			})
		})
	}
}

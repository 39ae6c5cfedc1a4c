package redisstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// Whatever happened to the network and to callers: when it is over, everything is served again within the breaker's longest delay and one
// probe, by all readers that the pool has, and nothing is refused from then on.
func TestEverythingIsServedWhenFaultsEnd(t *testing.T) {
	const (
		maxDelay, probe = 500 * time.Millisecond, 500 * time.Millisecond
		connect         = 500 * time.Millisecond
		within          = 4 * (maxDelay + probe + connect) // the stated time, and room for a busy machine
	)
	p := behind(t)
	s := open(t, redisstore.Options{URL: "redis://" + p.Addr(), Timeout: 500 * time.Millisecond, DialTimeout: connect, PoolTimeout: connect})
	b := store.WithBreaker(s, store.BreakerOptions{Faults: 3, MinDelay: 50 * time.Millisecond, MaxDelay: maxDelay, ProbeTimeout: probe, Probe: s.Alive})
	defer b.Close()
	var keys []string
	for i := range 8 {
		keys = append(keys, fmt.Sprint("live:", i))
		if err := put(t, b, keys[i], make([]byte, 200<<10)); err != nil {
			t.Fatal(err)
		}
	}
	get := func(ctx context.Context) (served int) {
		bufs := make([][]byte, len(keys))
		for i := range bufs {
			bufs[i] = make([]byte, 200<<10+store.Spare)
		}
		for _, err := range b.Get(ctx, keys, bufs) {
			if err == nil {
				served++
			}
		}
		return served
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	kinds := []faultproxy.Faults{
		{}, {Refuse: true}, {Blackhole: true}, {LatencyMS: 80}, {BytesPerSecond: 1 << 20}, {ResetAfterBytes: 100_000}, {FlipEveryBytes: 50_000},
	}
	for round := range 3 {
		stop, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for i := range 12 {
			r := rand.New(rand.NewPCG(seed, uint64(100*round+i+1)))
			callers.Go(func() {
				for stop.Err() == nil {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+r.IntN(200))*time.Millisecond)
					if r.IntN(3) == 0 {
						time.AfterFunc(time.Duration(r.IntN(50))*time.Millisecond, cancel)
					}
					if r.IntN(2) == 0 {
						_, _ = b.Lead(ctx, keys)
					} else {
						get(ctx)
					}
					cancel()
				}
			})
		}
		for range 5 {
			faults(t, p, kinds[random.IntN(len(kinds))])
			time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
		}
		faults(t, p, faultproxy.Faults{})
		cancel()
		callers.Wait()
		healed := time.Now()
		for {
			n := get(t.Context())
			if n == len(keys) && b.State() == store.BreakerClosed {
				break
			}
			if time.Since(healed) > within {
				t.Fatalf("round %d: %d of %d served %v after the faults ended, the breaker is %v", round, n, len(keys), within, b.State())
			}
			time.Sleep(time.Millisecond)
		}
		for range 20 {
			if n := get(t.Context()); n != len(keys) {
				t.Fatalf("round %d: then %d of %d served", round, n, len(keys))
			}
		}
	}
}

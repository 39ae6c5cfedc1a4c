package store_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
)

// After any history of faults, a store that is well is asked again within the longest delay and a probe, with a probe of its own or without, and
// then every call gets through.
func TestBreakerRefusesNothingHealthyForLong(t *testing.T) {
	const maxDelay, probe = 5 * time.Second, 2 * time.Second
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			f := storetest.NewFaulty(memstore.New(memstore.Options{}))
			o := store.BreakerOptions{Faults: 1 + r.IntN(4), MaxDelay: maxDelay, ProbeTimeout: probe}
			if seed%2 == 0 {
				o.Probe = f.Ping
			}
			b := store.WithBreaker(f, o)
			defer b.Close()
			call := func(patience time.Duration) error {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_, err := b.Lead(ctx, []string{"a"})
				return err
			}
			for range 1 + r.IntN(60) {
				switch r.IntN(6) {
				case 0:
					f.Heal()
				case 1:
					f.Inject(storetest.Fault{Err: []error{nil, store.ErrFull, store.ErrLate, context.Canceled, storetest.ErrInjectedNode}[r.IntN(5)], Count: r.IntN(4)})
				case 2:
					f.Inject(storetest.Fault{Delay: time.Duration(r.IntN(3000)) * time.Millisecond, Count: r.IntN(4)})
				case 3: // a caller that never ends its loop
					for range b.Get(t.Context(), []string{"a"}, [][]byte{make([]byte, 8)}) {
						time.Sleep(time.Duration(r.IntN(3)) * time.Second)
					}
				default:
					_ = call(time.Duration(1+r.IntN(500)) * time.Millisecond)
					time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
				}
			}
			f.Heal()
			for healed := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				err := call(time.Second)
				if err == nil && b.State() == store.BreakerClosed {
					break
				}
				if time.Since(healed) > maxDelay+probe {
					t.Fatalf("seed %d: %v %v after the faults ended, %v", seed, err, time.Since(healed), b.State())
				}
			}
			for range 10 {
				if err := call(time.Second); err != nil {
					t.Fatalf("seed %d: then %v", seed, err)
				}
			}
		})
	}
}

package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// A node that hangs costs its own keys and no others: its breaker opens, and the one around the store stays closed.
func TestASickNodeCostsItsOwnKeysOnly(t *testing.T) {
	s, err := redisstore.Open(redisstore.Options{
		URL: testredis.StartCluster(t, 3), NodeBreaker: store.BreakerOptions{Faults: 2, MinDelay: 100 * time.Millisecond, MaxDelay: 200 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := store.WithBreaker(s, store.BreakerOptions{Faults: 2, MinDelay: time.Hour})
	keys := make([]string, 30)
	for i := range keys {
		keys[i] = fmt.Sprintf("kvt1:d:nodes:%d", i)
		if err := b.Put(t.Context(), []store.Item{{Key: keys[i], Value: []byte("value")}}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	states := s.NodeStates()
	if len(states) != 3 {
		t.Fatalf("%d nodes: %v", len(states), states)
	}
	sick := redis.NewClient(&redis.Options{Addr: states[0].Node})
	defer sick.Close()
	const pause = 3 * time.Second
	if err := sick.Do(t.Context(), "CLIENT", "PAUSE", pause.Milliseconds(), "ALL").Err(); err != nil {
		t.Fatal(err)
	}
	paused := time.Now()
	// lead asks for one key, and reports whether it was found, or refused without being sent.
	lead := func(key string) (found, refused bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		n, err := b.Lead(ctx, []string{key})
		return n == 1 && err == nil, errors.Is(err, store.ErrUnavailable)
	}
	found, refused, failed := 0, 0, 0
	for _, k := range keys {
		switch yes, no := lead(k); {
		case yes:
			found++
		case no:
			refused++
		default:
			failed++
		}
	}
	t.Logf("%d found, %d refused, %d timed out, %v", found, refused, failed, s.NodeStates())
	if time.Since(paused) < pause && (found < 10 || refused == 0) {
		t.Errorf("%d keys found, %d refused, %d timed out; want those of two nodes, and few time-outs", found, refused, failed)
	}
	if b.State() != store.BreakerClosed {
		t.Errorf("the breaker of the whole store is %v", b.State())
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) { // it heals by itself
		found = 0
		for _, k := range keys {
			if yes, _ := lead(k); yes {
				found++
			}
		}
		if found == len(keys) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d keys found long after the node has recovered: %v", found, len(keys), s.NodeStates())
		}
	}
	if b.State() != store.BreakerClosed {
		t.Errorf("afterwards the breaker of the whole store is %v", b.State())
	}
}

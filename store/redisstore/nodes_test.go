package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	awaitNodes(t, s) // it heals without a call
	found = 0
	for _, k := range keys {
		if yes, _ := lead(k); yes {
			found++
		}
	}
	if found != len(keys) {
		t.Errorf("%d of %d keys found after the node has recovered", found, len(keys))
	}
	if b.State() != store.BreakerClosed {
		t.Errorf("afterwards the breaker of the whole store is %v", b.State())
	}
}

// awaitNodes waits until every node that owns slots is well.
func awaitNodes(t *testing.T, s *redisstore.Store) {
	t.Helper()
	sick := func(n redisstore.NodeState) bool { return n.State != store.BreakerClosed }
	for end := time.Now().Add(time.Minute); slices.ContainsFunc(s.NodeStates(), sick); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still sick: %v", s.NodeStates())
		}
	}
}

// After a failover it is the new master's health that counts, whether or not somebody still asks the dead one.
func TestADeadNodeIsForgottenWithItsSlots(t *testing.T) {
	url, nodes := testredis.StartReplicatedCluster(t, 3)
	s, err := redisstore.Open(redisstore.Options{URL: url, NodeBreaker: store.BreakerOptions{Faults: 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes})
	defer c.Close()
	const key = "kvt1:d:nodes:failover"
	master, err := c.MasterForKey(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	dead := master.Options().Addr
	_ = master.ShutdownNoSave(t.Context()).Err()
	isDead := func(n redisstore.NodeState) bool { return n.Node == dead && n.State != store.BreakerClosed }
	lead := func() error {
		_, err := s.Lead(t.Context(), []string{key})
		return err
	}
	for end := time.Now().Add(time.Minute); !slices.ContainsFunc(s.NodeStates(), isDead); _ = lead() {
		if time.Now().After(end) {
			t.Fatalf("nobody notices that %s is dead: %v", dead, s.NodeStates())
		}
	}
	began := time.Now()
	for lead() != nil {
		if time.Since(began) > time.Minute {
			t.Fatalf("no other node has taken over: %v", s.NodeStates())
		}
		time.Sleep(10 * time.Millisecond)
	}
	served := time.Since(began)
	awaitNodes(t, s)
	t.Logf("served after %v, well after %v", served.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// A node that is full, or that hangs, costs the items that belong there; the others of the batch are stored, and it is told which.
func TestANodeCostsItsOwnItemsOfABatch(t *testing.T) {
	url := testredis.StartCluster(t, 3)
	for _, c := range []struct {
		name    string
		command []any
		want    error
	}{
		{"full", []any{"config", "set", "maxmemory", "1"}, store.ErrFull},
		{"hangs", []any{"client", "pause", "60000", "all"}, store.ErrNode},
	} {
		s := open(t, redisstore.Options{URL: url})
		var items []store.Item
		for i := range 60 {
			items = append(items, store.Item{Key: fmt.Sprintf("kvt1:d:%s:%d", c.name, i), Value: make([]byte, 100<<10)})
		}
		if err := put(t, s, "kvt1:d:first", nil); err != nil {
			t.Fatal(err)
		}
		sick := redis.NewClient(&redis.Options{Addr: s.NodeStates()[0].Node})
		if err := sick.Do(t.Context(), c.command...).Err(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := s.Put(ctx, items, time.Hour)
		cancel()
		stored, failed := 0, 0
		for i, it := range items {
			why := store.ErrorOf(err, i)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			n, _ := s.Lead(ctx, []string{it.Key})
			cancel()
			switch {
			case why == nil && n == 1:
				stored++
			case errors.Is(why, c.want) && n == 0:
				failed++
			default:
				t.Errorf("%s: item %d: %v, and Lead says %d", c.name, i, why, n)
			}
		}
		t.Logf("%s: %d stored, %d failed", c.name, stored, failed)
		if stored < len(items)/3 || failed == 0 {
			t.Errorf("%s: %d of %d stored, %d failed", c.name, stored, len(items), failed)
		}
		_ = sick.Do(t.Context(), "config", "set", "maxmemory", "0").Err()
		_ = sick.Close()
	}
}

package redisstore

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// The cluster's client closes the clients of nodes that have left: neither their state nor their lane stays.
func TestNodesThatLeftAreForgotten(t *testing.T) {
	n := newNodes(t.Context(), store.BreakerOptions{})
	client := func(addr string) *redis.Client {
		return n.guard(redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1}), addr, login{})
	}
	stays, leaves := client("127.0.0.1:1"), client("127.0.0.1:2")
	defer stays.Close()
	var l lanes
	for _, c := range []*redis.Client{stays, leaves} {
		l.byNode.Store(c, newLane(defaultInFlight, 6))
	}
	if got := n.states(); len(got) != 2 {
		t.Fatalf("states %v, want two", got)
	}
	if err := leaves.Close(); err != nil {
		t.Fatal(err)
	}
	if got := n.states(); len(got) != 1 || got[0].Node != "127.0.0.1:1" {
		t.Errorf("states %v, want that of the node that stays", got)
	}
	l.forget()
	lanesLeft := 0
	l.byNode.Range(func(c, _ any) bool {
		if lanesLeft++; c != any(stays) {
			t.Error("the lane of a node that left is kept")
		}
		return true
	})
	if lanesLeft != 1 {
		t.Errorf("%d lanes, want one", lanesLeft)
	}
	n.stop()()
}

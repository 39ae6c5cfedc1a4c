package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// How long a purge takes to reach a worker, by the path on which it arrives, against a real Redis. A message needs a round trip and a poll
// 1.2 P, on a machine that has time; whatever happens, the lease bounds both by T.
func TestRevocationLatency(t *testing.T) {
	r := testredis.Start(t)
	const poll, lease = 250 * time.Millisecond, time.Second
	connect := func() redis.UniversalClient {
		c, err := redisstore.Connect(redisstore.Options{URL: r.URL(), Role: "control"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ctl := coordinator.NewControl(connect())
	id := block.Identity{Weights: block.Digest{1}, Layout: block.Digest{2}}
	act := byte(0)
	stamp := func() coordinator.Stamp {
		act++
		return coordinator.Stamp{Now: time.Now(), Act: coordinator.Act{act, 1}}
	}
	rec, err := coordinator.NewRecord("m").Register(id, "v1", true, stamp())
	if err != nil {
		t.Fatal(err)
	}
	stored, err := ctl.Swap(t.Context(), coordinator.Stored{}, rec)
	if err != nil {
		t.Fatal(err)
	}
	w, err := coordinator.NewWatch(coordinator.WatchOptions{Control: coordinator.NewControl(connect()), Model: "m", Poll: poll, Lease: lease})
	if err != nil {
		t.Fatal(err)
	}
	w.Start()
	defer w.Close()
	time.Sleep(600 * time.Millisecond) // subscribed
	purge := func(hint bool) time.Duration {
		changed := w.Changed()
		next, err := stored.Purge(coordinator.AllVersions, stamp())
		if err != nil {
			t.Fatal(err)
		}
		next.Dead = nil
		began := time.Now()
		if stored, err = ctl.Swap(t.Context(), stored, next); err != nil {
			t.Fatal(err)
		}
		if hint {
			if err := ctl.Hint(t.Context(), "m", next.Gen); err != nil {
				t.Fatal(err)
			}
		}
		<-changed
		return time.Since(began)
	}
	var byHint, byPoll, byLease []time.Duration
	for range 120 {
		byHint = append(byHint, purge(true))
		time.Sleep(15 * time.Millisecond) // a worker polls every 10 ms at most
	}
	for i := range 40 {
		time.Sleep(time.Duration(i*7) * time.Millisecond % poll)
		byPoll = append(byPoll, purge(false))
	}
	for range 6 { // cut off: strict workers stop by themselves
		for w.View().State != coordinator.Leased {
			time.Sleep(time.Millisecond)
		}
		began := time.Now()
		r.Pause()
		for w.View().State == coordinator.Leased {
			time.Sleep(time.Millisecond)
		}
		byLease = append(byLease, time.Since(began))
		r.Unpause()
	}
	for _, x := range []struct {
		path string
		d    []time.Duration
	}{{"hint", byHint}, {"poll", byPoll}, {"lease", byLease}} {
		slices.Sort(x.d)
		at := func(q float64) time.Duration { return x.d[int(q*float64(len(x.d)-1))].Round(100 * time.Microsecond) }
		t.Logf("revocation by %-5s (P %v, T %v): p50 %v, p99 %v, max %v of %d", x.path, poll, lease, at(0.5), at(0.99), at(1), len(x.d))
	}
}

// How fast dead entries are deleted, and what that costs reads meanwhile.
func TestReclaimRate(t *testing.T) {
	r := testredis.Start(t)
	s, err := redisstore.Open(redisstore.Options{URL: r.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const keys = 50_000
	value := make([]byte, 512)
	dead := block.EpochPrefix(block.Variant{1}, 1)
	for i := 0; i < keys; i += 500 {
		var items []store.Item
		for j := range 500 {
			items = append(items, store.Item{Key: fmt.Sprintf("%s%d:0", dead, i+j), Value: value})
		}
		if err := s.Put(t.Context(), items, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	live := block.EpochPrefix(block.Variant{1}, 2) + "live:0"
	if err := s.Put(t.Context(), []store.Item{{Key: live, Value: value}}, time.Hour); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	read := func() time.Duration {
		began := time.Now()
		for _, err := range s.Get(t.Context(), []string{live}, [][]byte{buf}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(began)
	}
	quantiles := func(d []time.Duration) (p50, p99 time.Duration) {
		slices.Sort(d)
		return d[len(d)/2].Round(time.Microsecond), d[len(d)*99/100].Round(time.Microsecond)
	}
	var idle, busy []time.Duration
	for range 3000 {
		idle = append(idle, read())
	}
	done := make(chan struct{})
	began := time.Now()
	var n int
	go func() {
		defer close(done)
		n, err = s.DeletePrefix(t.Context(), dead)
	}()
	for running := true; running; {
		busy = append(busy, read())
		select {
		case <-done:
			running = false
		default:
		}
	}
	took := time.Since(began)
	if err != nil || n != keys {
		t.Fatalf("deleted %d of %d: %v", n, keys, err)
	}
	p50i, p99i := quantiles(idle)
	p50b, p99b := quantiles(busy)
	t.Logf("%d keys in %v: %.0f a second; a read takes p50 %v, p99 %v; idle p50 %v, p99 %v", n, took.Round(time.Millisecond), float64(n)/took.Seconds(), p50b, p99b, p50i, p99i)
	read() // the live entry is still there
}

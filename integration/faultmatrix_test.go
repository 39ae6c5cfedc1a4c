package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/internal/testredis"
)

// damaged is a worker that keeps nothing in memory, so that every reuse is through Redis, behind a proxy; and another one that has stored
// the prompts past it. kvtier bench faults measures what these tests only hold to be right.
type damaged struct {
	t       *testing.T
	redis   *testredis.Redis
	client  *redis.Client
	proxy   *faultproxy.Proxy
	stored  *process // has computed and stored the prompts
	worker  *process
	prompts []string
	want    [][]int32 // answers without any cache
}

func newDamaged(t *testing.T, redisArgs ...string) *damaged {
	t.Helper()
	d := &damaged{t: t, redis: testredis.Start(t, redisArgs...)}
	d.client = redis.NewClient(&redis.Options{Addr: d.redis.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = d.client.Close() })
	var err error
	if d.proxy, err = faultproxy.Open(faultproxy.Options{Listen: "127.0.0.1:0", Upstream: d.redis.Addr(), Seed: 1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.proxy.Close() })
	for i := range 2 {
		d.prompts = append(d.prompts, d.fresh(i))
	}
	bare := start(t, "worker")
	d.stored = start(t, "worker", "--redis", d.redis.URL())
	for _, p := range d.prompts {
		d.want = append(d.want, bare.complete(p).Choices[0].TokenIDs)
		d.stored.complete(p)
	}
	d.worker = start(t, "worker", "--redis", "redis://"+d.proxy.Addr(), "--hot-bytes", "none")
	d.hits()
	return d
}

// fresh is a prompt that is like no other from its first token on, long enough to be worth a fetch.
func (d *damaged) fresh(i int) string {
	return fmt.Sprintf("ACT %d, SCENE %d\n%s", i, i*7, strings.Repeat(speech, 4))
}

// ask sends every prompt to the worker and compares.
func (d *damaged) ask(rounds int) {
	d.t.Helper()
	for range rounds {
		for i, p := range d.prompts {
			a, err := d.worker.tryComplete(p)
			if err != nil {
				d.t.Fatalf("a request failed: %v", err)
			}
			if !slices.Equal(a.Choices[0].TokenIDs, d.want[i]) {
				d.t.Fatalf("answer %v with %d tokens from Redis, without a cache %v", a.Choices[0].TokenIDs, a.Usage.Details.Remote, d.want[i])
			}
		}
	}
}

// hits waits until the worker is served from Redis.
func (d *damaged) hits() {
	d.t.Helper()
	i := 0
	d.worker.await("served from Redis", time.Minute, func() bool {
		i++
		a := d.worker.complete(d.prompts[i%len(d.prompts)])
		return a.Usage.Details.Remote > 0 && slices.Equal(a.Choices[0].TokenIDs, d.want[i%len(d.prompts)])
	})
}

func (d *damaged) set(f faultproxy.Faults) {
	d.t.Helper()
	if err := d.proxy.Set(f); err != nil {
		d.t.Fatal(err)
	}
}

// Faults 1 to 6 on the way to Redis: whatever it does to the bytes, every request is answered, and right, and hits come back.
func TestFaultsOnTheWay(t *testing.T) {
	d := newDamaged(t)
	for _, x := range []struct {
		name   string
		faults faultproxy.Faults
	}{
		{"refused", faultproxy.Faults{Refuse: true}},
		{"black hole", faultproxy.Faults{Blackhole: true}},
		{"50 ms", faultproxy.Faults{LatencyMS: 50}},
		{"200 ms", faultproxy.Faults{LatencyMS: 200}},
		{"1 s", faultproxy.Faults{LatencyMS: 1000}},
		{"10 MB/s", faultproxy.Faults{BytesPerSecond: 10_000_000}},
		{"50 kB/s", faultproxy.Faults{BytesPerSecond: 50_000}},
		{"loss", faultproxy.Faults{Loss: 0.02}},
		{"reset", faultproxy.Faults{ResetAfterBytes: 100_000}},
		{"flipped bits", faultproxy.Faults{FlipEveryBytes: 60_000}},
		{"all at once", faultproxy.Faults{LatencyMS: 5, Loss: 0.005, FlipEveryBytes: 200_000, ResetAfterBytes: 700_000, BytesPerSecond: 20_000_000}},
	} {
		t.Run(x.name, func(t *testing.T) {
			d.t, d.worker.t = t, t
			d.set(x.faults)
			d.ask(2)
			d.set(faultproxy.Faults{})
			d.hits()
		})
	}
	during := func(name string, do func(context.Context) error) {
		t.Run(name, func(t *testing.T) {
			d.t, d.worker.t = t, t
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					_ = do(ctx) // the connection that says so may be among those killed
					time.Sleep(25 * time.Millisecond)
				}
			}()
			d.ask(3)
			stop()
			<-done
			d.hits()
		})
	}
	during("client kill", func(ctx context.Context) error { return d.client.ClientKillByFilter(ctx, "TYPE", "normal").Err() })
	t.Run("server frozen", func(t *testing.T) { // connections stay open
		d.t, d.worker.t = t, t
		d.redis.Pause()
		d.ask(3)
		d.worker.await("degraded", 20*time.Second, func() bool { d.ask(1); return d.worker.status() == "degraded" })
		d.redis.Unpause()
		d.hits()
		d.worker.await("ready", 20*time.Second, func() bool { return d.worker.status() == "ready" })
	})
	during("client pause", func(ctx context.Context) error { return d.client.Do(ctx, "CLIENT", "PAUSE", "200", "ALL").Err() })
}

// Faults 6 and 25: somebody writes into our values, cuts them, swaps them, puts bytes of their own in their place. All of it is noticed.
func TestDamagedValuesInRedis(t *testing.T) {
	d := newDamaged(t)
	ctx := t.Context()
	random := rand.New(rand.NewPCG(1, 2))
	for _, x := range []struct {
		name   string
		damage func(keys []string, i int) error
	}{
		{"a byte of the payload", func(keys []string, i int) error {
			n, err := d.client.StrLen(ctx, keys[i]).Result()
			if err != nil {
				return err
			}
			at := 200 + random.Int64N(n-200)
			old, err := d.client.GetRange(ctx, keys[i], at, at).Result()
			if err != nil || len(old) != 1 {
				return fmt.Errorf("GETRANGE: %q, %w", old, err)
			}
			return d.client.SetRange(ctx, keys[i], at, string([]byte{old[0] ^ 1<<random.IntN(8)})).Err()
		}},
		{"a byte of the header", func(keys []string, i int) error {
			at := random.Int64N(100)
			old, err := d.client.GetRange(ctx, keys[i], at, at).Result()
			if err != nil || len(old) != 1 {
				return fmt.Errorf("GETRANGE: %q, %w", old, err)
			}
			return d.client.SetRange(ctx, keys[i], at, string([]byte{old[0] ^ 1<<random.IntN(8)})).Err()
		}},
		{"cut", func(keys []string, i int) error {
			v, err := d.client.Get(ctx, keys[i]).Result()
			if err != nil {
				return err
			}
			return d.client.Set(ctx, keys[i], v[:random.IntN(len(v))], time.Hour).Err()
		}},
		{"swapped", func(keys []string, i int) error {
			return d.client.Copy(ctx, keys[(i+1)%len(keys)], keys[i], 0, true).Err()
		}},
		{"other bytes", func(keys []string, i int) error {
			junk := make([]byte, []int{0, 1, 130, 33_000, 300_000}[i%5])
			for j := range junk {
				junk[j] = byte(random.Uint32())
			}
			return d.client.Set(ctx, keys[i], junk, time.Hour).Err()
		}},
		{"another type", func(keys []string, i int) error {
			return d.client.Watch(ctx, func(tx *redis.Tx) error {
				_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
					p.Del(ctx, keys[i])
					p.LPush(ctx, keys[i], "kvt1")
					return nil
				})
				return err
			})
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			d.t, d.worker.t = t, t
			keys, err := d.client.Keys(ctx, block.KeyPrefix+"*").Result()
			if err != nil || len(keys) < 20 {
				t.Fatalf("%d keys, %v", len(keys), err)
			}
			for i := range keys {
				if i%3 == 0 {
					if err := x.damage(keys, i); err != nil {
						t.Fatal(err)
					}
				}
			}
			d.ask(2)
			if x.name == "another type" { // nothing of ours deletes that
				for _, k := range keys {
					if d.client.Type(ctx, k).Val() == "list" {
						d.client.Del(ctx, k)
					}
				}
			}
			d.ask(1)
			d.hits()
		})
	}
}

// Fault 7: Redis is full and evicts nothing. What is stored is still served, storing pauses, and goes on when there is room.
func TestFullServer(t *testing.T) {
	d := newDamaged(t)
	ctx := t.Context()
	limit := func(bytes int64) {
		t.Helper()
		if err := d.client.ConfigSet(ctx, "maxmemory", fmt.Sprint(bytes)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.client.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err(); err != nil {
		t.Fatal(err)
	}
	limit(1 << 20) // less than is there
	for i := range 4 {
		d.stored.complete(d.fresh(100 + i)) // cannot be stored
		d.ask(1)
		d.hits()
	}
	limit(0)
	again := d.fresh(103)
	want := d.stored.complete(again).Choices[0].TokenIDs
	d.worker.await("served what could not be stored", 40*time.Second, func() bool {
		a := d.worker.complete(again)
		if !slices.Equal(a.Choices[0].TokenIDs, want) {
			t.Fatalf("answer %v, want %v", a.Choices[0].TokenIDs, want)
		}
		return a.Usage.Details.Remote > 0
	})
}

// Fault 8: Redis has room for a few of our values only and evicts as it likes.
func TestEvictionStorm(t *testing.T) {
	d := newDamaged(t, "--maxmemory-policy", "allkeys-random")
	used, err := d.client.InfoMap(t.Context(), "memory").Result()
	if err != nil {
		t.Fatal(err)
	}
	var bytes int64
	if _, err := fmt.Sscan(used["Memory"]["used_memory"], &bytes); err != nil {
		t.Fatal(err)
	}
	if err := d.client.ConfigSet(t.Context(), "maxmemory", fmt.Sprint(bytes-1<<20)).Err(); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		d.stored.complete(d.fresh(200 + i))
		d.ask(1)
	}
}

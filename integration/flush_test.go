package integration

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
)

// values counts the values of blocks on a server; canaries are none.
func values(t *testing.T, c redis.Cmdable) (n int) {
	t.Helper()
	for it := c.Scan(t.Context(), 0, "kvt1:d:*", 1000).Iterator(); it.Next(t.Context()); {
		if c.StrLen(t.Context(), it.Val()).Val() > 64 {
			n++
		}
	}
	return n
}

// Redis loses everything, and worker 1 gets nothing but a prompt that it has in memory: it shares that again, and worker 2 is served.
func TestAHotWorkerSharesAgainAfterALoss(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *fleet){
		"FLUSHALL": func(t *testing.T, f *fleet) {
			if err := f.client(t).FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"restart without data": func(_ *testing.T, f *fleet) {
			f.redis.Stop()
			f.redis.Start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFleet(t)
			c := f.client(t)
			first := f.workers[0].complete(long)
			prompt := first.Usage.PromptTokens / 16 // blocks; those of the answer are not used again
			f.workers[0].await("stored", 10*time.Second, func() bool { return values(t, c) >= prompt })
			lose(t, f)
			again := f.workers[0].complete(long)
			if again.Usage.Details.Remote != 0 || again.Usage.Details.Cached == 0 {
				t.Fatalf("%d cached tokens, %d of them from Redis; the test wants hot ones", again.Usage.Details.Cached, again.Usage.Details.Remote)
			}
			f.workers[0].await("shared again", 20*time.Second, func() bool { return values(t, c) >= prompt-1 })
			second := f.workers[1].complete(long)
			if second.Usage.Details.Remote < 64 {
				t.Errorf("worker 2 took %d of %d prompt tokens from Redis", second.Usage.Details.Remote, second.Usage.PromptTokens)
			}
			if !slices.Equal(first.Choices[0].TokenIDs, second.Choices[0].TokenIDs) {
				t.Error("output differs")
			}
		})
	}
}

// Each master of a cluster in turn comes back empty.
func TestAHotWorkerSharesAgainWhatANodeHasLost(t *testing.T) {
	url := testredis.StartCluster(t, 3)
	w := start(t, "worker", "--redis", url)
	w.complete(long)
	used := w.complete(long).Usage.Details.Cached / 16 // blocks, which are used again; those of the answer are not
	opts, err := redis.ParseClusterURL("redis://" + url[len("redis+cluster://"):len("redis+cluster://")+len("127.0.0.1:00000")])
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClusterClient(opts)
	defer c.Close()
	there := func() (n int) {
		for _, values := range each(t, c) {
			n += values
		}
		return n
	}
	w.await("stored", 10*time.Second, func() bool { return there() >= used })
	for addr := range each(t, c) {
		m := redis.NewClient(&redis.Options{Addr: addr})
		if err := m.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		_ = m.Close()
		if there() >= used {
			t.Fatalf("%s has nothing that could be lost", addr)
		}
		w.await("shared again on "+addr, 20*time.Second, func() bool { return there() >= used })
	}
}

// each counts values by master.
func each(t *testing.T, c *redis.ClusterClient) map[string]int {
	t.Helper()
	found := make(chan map[string]int, 64)
	err := c.ForEachMaster(t.Context(), func(_ context.Context, m *redis.Client) error {
		found <- map[string]int{m.Options().Addr: values(t, m)}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	close(found)
	all := map[string]int{}
	for one := range found {
		maps.Copy(all, one)
	}
	return all
}

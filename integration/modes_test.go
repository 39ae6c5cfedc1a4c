package integration

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
)

// Never wrong, never stale, whatever kind of server: two coordinators and two workers share, swap and purge on each of them. TLS and access
// lists have a test of their own.
func TestEveryKindOfRedis(t *testing.T) {
	for kind, url := range map[string]func(*testing.T) string{
		"single":  func(t *testing.T) string { return testredis.Start(t).URL() },
		"cluster": func(t *testing.T) string { return testredis.StartCluster(t, 3) },
		"sentinel": func(t *testing.T) string {
			url, _ := testredis.StartSentinel(t)
			return url
		},
		"valkey": func(t *testing.T) string { return "redis://" + testredis.StartImage(t, testredis.ValkeyImage) },
	} {
		t.Run(kind, func(t *testing.T) { startGroup(t, on(t, url(t))).drill() })
	}
}

// load keeps both workers busy until stop is called, which fails the test for every request that failed or was answered wrong. what is the
// only label that may answer.
func (g *group) load() (stop func()) {
	g.t.Helper()
	ps := prompts(4)
	var want [][]int32
	for _, p := range ps {
		want = append(want, g.workers[0].complete(p).Choices[0].TokenIDs)
	}
	quit := make(chan struct{})
	type report struct{ answers, failed, wrong int }
	reports := make(chan report)
	for i, w := range g.workers {
		go func() {
			var r report
			for k := i; ; k++ {
				select {
				case <-quit:
					reports <- r
					return
				default:
				}
				a, err := w.tryComplete(ps[k%len(ps)])
				switch {
				case err != nil:
					r.failed++
				case !slices.Equal(a.Choices[0].TokenIDs, want[k%len(ps)]):
					r.wrong++
				default:
					r.answers++
				}
			}
		}()
	}
	return func() {
		g.t.Helper()
		close(quit)
		for range g.workers {
			if r := <-reports; r.failed+r.wrong > 0 || r.answers == 0 {
				g.t.Errorf("%d right answers, %d wrong ones, %d requests failed", r.answers, r.wrong, r.failed)
			}
		}
	}
}

// shutdown ends a server at once, without saving.
func shutdown(t *testing.T, addr string) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer c.Close()
	_ = c.ShutdownNoSave(context.Background()).Err() // the connection is lost, as it should be
	if err := c.Ping(t.Context()).Err(); err == nil {
		t.Fatalf("%s still answers", addr)
	}
}

// Never blocks: while Sentinel promotes the replica every request is answered, and right.
func TestSentinelFailover(t *testing.T) {
	url, primary, replica := testredis.StartFailover(t)
	startGroup(t, on(t, url)).failover(primary, func(ctx context.Context) bool { return isMaster(ctx, replica) })
}

// Never blocks: a master of the cluster dies under load, its replica takes over, and nobody noticed but in the hit rate.
func TestClusterNodeKilled(t *testing.T) {
	url, nodes := testredis.StartReplicatedCluster(t, 3)
	g := startGroup(t, on(t, url))
	// the master of the control records, which hurts most
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes})
	defer c.Close()
	victim, err := c.MasterForKey(t.Context(), record)
	if err != nil {
		t.Fatal(err)
	}
	g.failover(victim.Options().Addr, func(ctx context.Context) bool {
		return slices.ContainsFunc(nodes[3:], func(addr string) bool { return isMaster(ctx, addr) })
	})
}

// isMaster reports whether a server is a primary, of a cluster that serves every slot if it is in one.
func isMaster(ctx context.Context, addr string) bool {
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer c.Close()
	info := c.Info(ctx, "replication", "cluster").Val()
	return strings.Contains(info, "role:master") &&
		(!strings.Contains(info, "cluster_enabled:1") || strings.Contains(c.ClusterInfo(ctx).Val(), "cluster_state:ok"))
}

// failover shuts a primary down under load, and waits until another server has taken over: no request may fail meanwhile, and afterwards
// hits, swaps and purges go on.
func (g *group) failover(primary string, taken func(context.Context) bool) {
	g.t.Helper()
	g.share(0, 1)
	stop := g.load()
	shutdown(g.t, primary)
	began := time.Now()
	g.workers[0].await("taken over", 30*time.Second, func() bool { return taken(g.t.Context()) })
	after := time.Since(began)
	stop()
	g.ready()
	g.t.Logf("taken over after %v, workers ready after %v", after.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	g.share(0, 1)
	g.leader()
	g.swap(1)
	g.purge(0)
}

// leader waits until one of the coordinators leads again and both reach Redis.
func (g *group) leader() {
	g.t.Helper()
	for _, c := range g.coordinators {
		c.await("ready", 40*time.Second, func() bool { return c.status() == "ready" })
	}
}

// Never wrong: slots move from one master to another while requests read and write them, the control records' among them. A redirection is
// followed or is a miss.
func TestSlotsMigrateUnderLoad(t *testing.T) {
	url := testredis.StartCluster(t, 3)
	g := startGroup(t, on(t, url))
	g.share(0, 1)
	addrs := strings.Split(strings.TrimPrefix(url, "redis+cluster://"), ",")
	stop := g.load()
	moved, keys := 0, 0
	for i, from := range addrs {
		m, k := migrate(t, from, addrs[(i+1)%len(addrs)], 24)
		moved, keys = moved+m, keys+k
	}
	stop()
	if keys == 0 {
		t.Error("no slot with a key has moved")
	}
	t.Logf("%d slots with %d keys moved", moved, keys)
	g.ready()
	g.share(0, 1)
	g.swap(0)
	g.purge(1)
}

// migrate moves up to limit of the slots that hold keys, as redis-cli --cluster reshard does, and the slot of the control records.
func migrate(t *testing.T, from, to string, limit int) (moved, keys int) {
	t.Helper()
	ctx := t.Context()
	source, target := redis.NewClient(&redis.Options{Addr: from}), redis.NewClient(&redis.Options{Addr: to})
	defer source.Close()
	defer target.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sourceID, err := source.ClusterMyID(ctx).Result()
	must(err)
	targetID, err := target.ClusterMyID(ctx).Result()
	must(err)
	shards, err := source.ClusterShards(ctx).Result()
	must(err)
	control, err := source.ClusterKeySlot(ctx, record).Result()
	must(err)
	host, port, _ := strings.Cut(to, ":")
	var ranges []redis.SlotRange
	for _, s := range shards {
		if slices.ContainsFunc(s.Nodes, func(n redis.Node) bool { return n.ID == sourceID }) {
			ranges = s.Slots
		}
	}
	for _, r := range ranges {
		for slot := int(r.Start); slot <= int(r.End) && moved < limit; slot++ {
			if n := source.ClusterCountKeysInSlot(ctx, slot).Val(); n == 0 && int64(slot) != control {
				continue
			}
			must(target.Do(ctx, "cluster", "setslot", slot, "importing", sourceID).Err())
			must(source.Do(ctx, "cluster", "setslot", slot, "migrating", targetID).Err())
			for {
				names, err := source.ClusterGetKeysInSlot(ctx, slot, 100).Result()
				must(err)
				if len(names) == 0 {
					break
				}
				args := []any{"migrate", host, port, "", 0, 5000, "replace", "keys"}
				for _, n := range names {
					args = append(args, n)
				}
				must(source.Do(ctx, args...).Err())
				keys += len(names)
			}
			must(target.Do(ctx, "cluster", "setslot", slot, "node", targetID).Err())
			must(source.Do(ctx, "cluster", "setslot", slot, "node", targetID).Err())
			moved++
		}
	}
	return moved, keys
}

package redisstore_test

import (
	"os"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/store/storetest"
)

func open(tb testing.TB, o redisstore.Options) *redisstore.Store {
	tb.Helper()
	s, err := redisstore.Open(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformanceMiniredis(t *testing.T) {
	for name, scheme := range map[string]string{"Single": "redis://", "Cluster": "redis+cluster://"} {
		t.Run(name, func(t *testing.T) {
			m := miniredis.RunT(t)
			storetest.Run(t, storetest.Harness{
				Open: func(tb testing.TB) store.Store {
					m.FlushAll()
					return open(tb, redisstore.Options{URL: scheme + m.Addr()})
				},
				Advance:      m.FastForward,
				MaxTTLJitter: 0.1,
			})
		})
	}
}

func TestConformanceRedis(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open: func(tb testing.TB) store.Store {
			return open(tb, redisstore.Options{URL: pool.Get(tb).URL()})
		},
		MaxTTLJitter: 0.1,
	})
}

// BenchmarkRedis measures a server at KVTIER_BENCH_REDIS, or miniredis, whose numbers say little.
func BenchmarkRedis(b *testing.B) {
	url := os.Getenv("KVTIER_BENCH_REDIS")
	if url == "" {
		url = "redis://" + miniredis.RunT(b).Addr()
	}
	storetest.RunBenchmarks(b, storetest.Harness{
		Open: func(tb testing.TB) store.Store { return open(tb, redisstore.Options{URL: url}) },
	})
}

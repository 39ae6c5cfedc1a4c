package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/store/storetest"
)

func TestConformanceCluster(t *testing.T) {
	url := testredis.StartCluster(t, 3)
	storetest.Run(t, storetest.Harness{
		Open: func(tb testing.TB) store.Store {
			c, err := redisstore.Connect(redisstore.Options{URL: url})
			if err != nil {
				tb.Fatal(err)
			}
			defer c.Close()
			err = c.(*redis.ClusterClient).ForEachMaster(context.Background(), func(ctx context.Context, c *redis.Client) error {
				return c.FlushAll(ctx).Err()
			})
			if err != nil {
				tb.Fatal(err)
			}
			return open(tb, redisstore.Options{URL: url})
		},
		MaxTTLJitter: 0.1,
	})
	t.Run("Check", func(t *testing.T) {
		r, err := open(t, redisstore.Options{URL: url}).Check(t.Context())
		if err != nil || len(r.Servers) != 3 {
			t.Errorf("Check = %+v, %v", r, err)
		}
	})
}

func put(t *testing.T, s store.Store, key string, value []byte) error {
	t.Helper()
	return s.Put(t.Context(), []store.Item{{Key: key, Value: value}}, time.Hour)
}

// A server that is down costs no more than a refused connection, and is a fault.
func TestDownIsFast(t *testing.T) {
	m := miniredis.RunT(t)
	addr := m.Addr()
	m.Close()
	s := open(t, redisstore.Options{URL: "redis://user:hunter2@" + addr})
	start := time.Now()
	_, err := s.Lead(t.Context(), []string{"a"})
	if !store.IsFault(err) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Lead: %v", err)
	}
	if d := time.Since(start); d > 100*time.Millisecond {
		t.Errorf("Lead took %v", d)
	}
	for _, err := range s.Get(t.Context(), []string{"a"}, make([][]byte, 1)) {
		if !store.IsFault(err) {
			t.Errorf("Get: %v", err)
		}
	}
	if err := put(t, s, "a", nil); !store.IsFault(err) || !strings.HasPrefix(err.Error(), `redisstore: put "a": `) {
		t.Errorf("Put: %v", err)
	}
}

func TestWrongPasswordIsFault(t *testing.T) {
	m := miniredis.RunT(t)
	m.RequireAuth("right")
	if err := open(t, redisstore.Options{URL: "redis://:wrong@" + m.Addr()}).Ping(t.Context()); !store.IsFault(err) || strings.Contains(err.Error(), "wrong@") {
		t.Errorf("Ping: %v", err)
	}
	if err := open(t, redisstore.Options{URL: "redis://:right@" + m.Addr()}).Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
}

func TestClientName(t *testing.T) {
	r := pool.Get(t)
	c, err := redisstore.Connect(redisstore.Options{URL: r.URL(), Role: "worker", ID: "w-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if name := c.ClientGetName(t.Context()).Val(); name != "kvtier-worker-w-1" {
		t.Errorf("client name %q", name)
	}
}

func TestFull(t *testing.T) {
	r := testredis.Start(t, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
	s := open(t, redisstore.Options{URL: r.URL()})
	var err error
	for i := 0; err == nil && i < 20; i++ {
		err = put(t, s, fmt.Sprint(i), make([]byte, 1<<20))
	}
	if !errors.Is(err, store.ErrFull) || store.IsFault(err) {
		t.Errorf("Put: %v, want ErrFull", err)
	}
	if n, err := s.Lead(t.Context(), []string{"0"}); n != 1 || err != nil {
		t.Errorf("Lead of a full server = %d, %v", n, err)
	}
	report, err := s.Check(t.Context())
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], "noeviction") {
		t.Errorf("warnings %q", report.Warnings)
	}
	if sv := report.Servers[0]; (sv.Product != "redis" && sv.Product != "valkey") || sv.MaxMemoryBytes != 8<<20 {
		t.Errorf("server %+v", sv)
	}
}

// A frozen server holds nobody longer than the deadline, breaking off included, and costs nothing once it goes on.
func TestFrozenServer(t *testing.T) {
	r := testredis.Start(t)
	s := open(t, redisstore.Options{URL: r.URL(), Timeout: 400 * time.Millisecond, DialTimeout: 250 * time.Millisecond})
	var keys []string
	var bufs [][]byte
	for i := range 8 {
		keys, bufs = append(keys, fmt.Sprint(i)), append(bufs, make([]byte, 2<<20+store.Spare))
		if err := put(t, s, keys[i], make([]byte, 2<<20)); err != nil {
			t.Fatal(err)
		}
	}
	r.Pause()
	for what, call := range map[string]func(context.Context) error{
		"Lead": func(ctx context.Context) error { _, err := s.Lead(ctx, keys); return err },
		"Put":  func(ctx context.Context) error { return s.Put(ctx, []store.Item{{Key: "x"}}, time.Hour) },
		"Get": func(ctx context.Context) error {
			for _, err := range s.Get(ctx, keys, bufs) {
				return err // breaks off
			}
			return nil
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || !store.IsFault(err) { // the server answers nothing: without a deadline it would wait for ever
			t.Errorf("%s: %v", what, err)
		}
		cancel()
	}
	if _, err := s.Lead(t.Context(), keys); !store.IsFault(err) { // no deadline but Timeout
		t.Errorf("Lead: %v", err)
	}
	r.Unpause()
	if n, err := s.Lead(t.Context(), keys); n != len(keys) || err != nil {
		t.Errorf("Lead afterwards = %d, %v", n, err)
	}
}

// After a restart the pool's connections are dead; no call may notice, because nothing is retried.
func TestRestart(t *testing.T) {
	r := testredis.Start(t)
	s := open(t, redisstore.Options{URL: r.URL()})
	if err := put(t, s, "a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	r.Stop()
	if _, err := s.Lead(t.Context(), []string{"a"}); !store.IsFault(err) {
		t.Errorf("Lead of a stopped server: %v", err)
	}
	r.Start()
	for range 10 {
		if _, err := s.Lead(t.Context(), []string{"a"}); err != nil {
			t.Fatalf("Lead after a restart: %v", err)
		}
	}
}

func TestCheckTolerates(t *testing.T) {
	report, err := open(t, redisstore.Options{URL: "redis://" + miniredis.RunT(t).Addr()}).Check(t.Context())
	if err != nil || len(report.Servers) != 1 || len(report.Warnings) == 0 {
		t.Errorf("Check of a fake = %+v, %v", report, err)
	}

	r := pool.Get(t)
	admin := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer admin.Close()
	if err := admin.ACLSetUser(t.Context(), "poor", "on", ">pw", "~*", "+get", "+set", "+exists", "+unlink", "+ping", "+client|setname").Err(); err != nil {
		t.Fatal(err)
	}
	s := open(t, redisstore.Options{Addrs: []string{r.Addr()}, Username: "poor", Password: "pw"})
	report, err = s.Check(t.Context())
	if err != nil || len(report.Warnings) == 0 || !strings.Contains(strings.Join(report.Warnings, "\n"), "maxmemory") {
		t.Errorf("Check with few rights = %+v, %v", report, err)
	}
	if err := put(t, s, "a", []byte("1")); err != nil {
		t.Errorf("Put with few rights: %v", err)
	}
}

// Many readers share the pool and the bound on bytes in flight without starving each other.
func TestManyReaders(t *testing.T) {
	s := open(t, redisstore.Options{URL: "redis://" + miniredis.RunT(t).Addr(), PoolSize: 2, MaxInFlightBytes: 1 << 20, PoolTimeout: 5 * time.Second})
	var keys []string
	for i := range 6 {
		keys = append(keys, fmt.Sprint(i))
		if err := put(t, s, keys[i], make([]byte, 700<<10)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	for range 12 {
		go func() {
			bufs := make([][]byte, len(keys))
			for i := range bufs {
				bufs[i] = make([]byte, 2<<20) // larger than the bound
			}
			var first error
			for n, err := range s.Get(t.Context(), keys, bufs) {
				if first == nil && (err != nil || n != 700<<10) {
					first = fmt.Errorf("%d, %w", n, err)
				}
			}
			done <- first
		}()
	}
	for range 12 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

package testredis_test

import (
	"os"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
)

var pool testredis.Pool

func TestMain(m *testing.M) {
	code := m.Run()
	pool.Close()
	os.Exit(code)
}

func TestPoolFlushesBetweenTests(t *testing.T) {
	var addr string
	for range 2 {
		r := pool.Get(t)
		if addr != "" && r.Addr() != addr {
			t.Errorf("a second server at %s, the first is at %s", r.Addr(), addr)
		}
		addr = r.Addr()
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		if n := c.DBSize(t.Context()).Val(); n != 0 {
			t.Errorf("%d keys in a fresh server", n)
		}
		if err := c.Set(t.Context(), "a", "1", 0).Err(); err != nil {
			t.Error(err)
		}
	}
}

func TestStopAndStartKeepTheAddress(t *testing.T) {
	r := testredis.Start(t, "--maxmemory", "64mb")
	addr := r.Addr()
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1})
	defer c.Close()
	if got := c.ConfigGet(t.Context(), "maxmemory").Val()["maxmemory"]; got != "67108864" {
		t.Errorf("maxmemory = %q", got)
	}
	r.Stop()
	if err := c.Ping(t.Context()).Err(); err == nil {
		t.Error("a stopped server answers")
	}
	r.Start()
	if r.Addr() != addr {
		t.Errorf("address %s, was %s", r.Addr(), addr)
	}
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}

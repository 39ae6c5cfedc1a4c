package redisstore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/store/storetest"
)

// conform runs the suite; the server behind o is emptied before each case, through options that may.
func conform(t *testing.T, o, admin redisstore.Options) {
	t.Helper()
	storetest.Run(t, storetest.Harness{
		Open: func(tb testing.TB) store.Store {
			c, err := redisstore.Connect(admin)
			if err != nil {
				tb.Fatal(err)
			}
			defer c.Close()
			if err := c.FlushAll(context.Background()).Err(); err != nil {
				tb.Fatal(err)
			}
			return open(tb, o)
		},
		MaxTTLJitter: 0.1,
	})
}

func TestConformanceSentinel(t *testing.T) {
	url, primary := testredis.StartSentinel(t)
	o := redisstore.Options{URL: url}
	conform(t, o, o)
	t.Run("wrong kinds of URL", func(t *testing.T) {
		for _, bad := range []string{
			strings.TrimSuffix(url, "/master") + "/other",
			"redis+sentinel://" + primary + "/master", // a data server is no sentinel
		} {
			if err := open(t, redisstore.Options{URL: bad}).Ping(t.Context()); !errors.Is(err, redisstore.ErrMode) || !store.IsFault(err) {
				t.Errorf("Ping(%s): %v, want ErrMode", bad, err)
			}
		}
	})
}

func TestConformanceTLS(t *testing.T) {
	addr, trust := testredis.StartTLS(t)
	o := redisstore.Options{URL: "rediss://" + addr, TLS: trust}
	conform(t, o, o)
	t.Run("mismatches", func(t *testing.T) {
		plain := pool.Get(t)
		for name, o := range map[string]redisstore.Options{
			"plain client, TLS server":    {URL: "redis://" + addr},
			"TLS client, plain server":    {URL: "rediss://" + plain.Addr(), TLS: trust},
			"certificate nobody vouches":  {URL: "rediss://" + addr},
			"certificate of another name": {URL: "rediss://" + addr, TLS: &tls.Config{RootCAs: trust.RootCAs, ServerName: "elsewhere"}},
		} {
			s := open(t, o)
			if err := s.Ping(t.Context()); !errors.Is(err, redisstore.ErrTLS) || !store.IsFault(err) {
				t.Errorf("%s: Ping: %v, want ErrTLS", name, err)
			}
			if _, err := s.Lead(t.Context(), []string{"a"}); !errors.Is(err, redisstore.ErrTLS) {
				t.Errorf("%s: Lead: %v, want ErrTLS", name, err)
			}
		}
	})
}

func TestConformanceValkey(t *testing.T) {
	o := redisstore.Options{URL: "redis://" + testredis.StartImage(t, testredis.ValkeyImage)}
	conform(t, o, o)
	if r, err := open(t, o).Check(t.Context()); err != nil || r.Servers[0].Product != "valkey" {
		t.Errorf("Check = %+v, %v", r, err)
	}
}

// A user who may do what a worker does, and nothing else, on the names of values alone.
func TestConformanceACLUser(t *testing.T) {
	r := pool.Get(t)
	admin := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer admin.Close()
	err := admin.ACLSetUser(t.Context(), "worker", "on", ">p@ss/word", "~*", "+get", "+set", "+exists", "+strlen", "+pttl", "+unlink", "+scan", "+ping", "+persist", "+pexpire", "+watch", "+multi", "+exec",
		"+client|setname").Err()
	if err != nil {
		t.Fatal(err)
	}
	conform(t, redisstore.Options{URL: "redis://worker:p%40ss%2Fword@" + r.Addr()}, redisstore.Options{URL: r.URL()})
	t.Run("refusals", func(t *testing.T) {
		if err := admin.ACLSetUser(t.Context(), "reader", "on", ">pw", "~*", "+get", "+ping", "+client|setname").Err(); err != nil {
			t.Fatal(err)
		}
		if err := put(t, open(t, redisstore.Options{URL: "redis://reader:pw@" + r.Addr()}), "a", nil); !errors.Is(err, redisstore.ErrAuth) {
			t.Errorf("Put of a reader: %v, want ErrAuth", err)
		}
		for _, url := range []string{"redis://worker:wrong@" + r.Addr(), "redis://nobody:pw@" + r.Addr()} {
			err := open(t, redisstore.Options{URL: url}).Ping(t.Context())
			if !errors.Is(err, redisstore.ErrAuth) || strings.Contains(err.Error(), "wrong@") {
				t.Errorf("Ping(%s): %v, want ErrAuth", redisstore.Redact(url), err)
			}
		}
	})
	t.Run("no password", func(t *testing.T) {
		locked := testredis.StartImage(t, testredis.DefaultImage, "--requirepass", "secret")
		if err := put(t, open(t, redisstore.Options{URL: "redis://" + locked}), "a", nil); !errors.Is(err, redisstore.ErrAuth) {
			t.Errorf("Put without a password: %v, want ErrAuth", err)
		}
	})
}

func TestConformanceUnixSocket(t *testing.T) {
	r := pool.Get(t)
	o := redisstore.Options{URL: "unix://" + forward(t, r.Addr())}
	conform(t, o, o)
}

// forward listens on a Unix socket and passes everything on to addr: a container's own socket cannot be reached on every machine.
func forward(t *testing.T, addr string) (path string) {
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				_ = in.Close()
				continue
			}
			for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
				wg.Go(func() {
					_, _ = io.Copy(c[0], c[1])
					_, _ = c[0].Close(), c[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return path
}

// A URL that names another kind of server fails by name, whichever call comes first.
func TestWrongMode(t *testing.T) {
	single := pool.Get(t)
	cluster := testredis.StartCluster(t, 3)
	node := "redis://" + strings.Split(strings.TrimPrefix(cluster, "redis+cluster://"), ",")[0]
	for name, url := range map[string]string{"cluster URL, single server": "redis+cluster://" + single.Addr(), "single URL, cluster": node} {
		s := open(t, redisstore.Options{URL: url})
		keys := []string{"a", "b", "c", "d"} // in slots of different nodes
		_, err := s.Lead(t.Context(), keys)
		if !errors.Is(err, redisstore.ErrMode) || !store.IsFault(err) {
			t.Errorf("%s: Lead: %v, want ErrMode", name, err)
		}
		var failed error
		for _, err := range s.Get(t.Context(), keys, [][]byte{make([]byte, 9), make([]byte, 9), make([]byte, 9), make([]byte, 9)}) {
			if !errors.Is(err, store.ErrNotFound) {
				failed = err
			}
		}
		if !errors.Is(failed, redisstore.ErrMode) {
			t.Errorf("%s: Get: %v, want ErrMode", name, failed)
		}
	}
}

func TestCheckRefusesEvictionOfControlKeys(t *testing.T) {
	url := "redis://" + testredis.StartImage(t, testredis.DefaultImage, "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
	r, err := open(t, redisstore.Options{URL: url}).Check(t.Context())
	if !errors.Is(err, redisstore.ErrPolicy) || len(r.Servers) != 1 {
		t.Errorf("Check = %+v, %v, want ErrPolicy", r, err)
	}
}

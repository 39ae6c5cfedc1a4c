package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// What each error of a server means for reads, for writes and for the breaker. A nil error means that the call works; errFault that it is a
// fault without a name of its own; wants are compared by errors.Is.
var errFault = errors.New("fault")

type meaning struct {
	text        string // that the server's reply has
	read, write error
	opens       bool // the breaker
}

// TestReplies provokes the errors at real servers.
func TestReplies(t *testing.T) {
	r := testredis.Start(t, "--maxmemory-policy", "noeviction")
	admin := redis.NewClient(&redis.Options{Addr: r.Addr(), MaxRetries: -1, ReadTimeout: 20 * time.Second})
	defer admin.Close()
	set := func(pairs ...string) func(*testing.T) (url string) {
		return func(t *testing.T) string {
			t.Helper()
			for i := 0; i < len(pairs); i += 2 {
				if err := admin.ConfigSet(t.Context(), pairs[i], pairs[i+1]).Err(); err != nil {
					t.Fatal(err)
				}
			}
			return r.URL()
		}
	}
	do := func(t *testing.T, args ...any) {
		t.Helper()
		if err := admin.Do(context.Background(), args...).Err(); err != nil && !errors.Is(err, redis.Nil) {
			t.Fatalf("%v: %v", args, err)
		}
	}
	cluster := testredis.StartCluster(t, 3)
	node := strings.Split(strings.TrimPrefix(cluster, "redis+cluster://"), ",")[0]
	for name, c := range map[string]struct {
		meaning
		begin func(*testing.T) (url string)
		end   func(*testing.T)
	}{
		"a value of another type": {
			meaning{"WRONGTYPE", store.ErrNotValue, nil, false},
			func(t *testing.T) string { do(t, "lpush", "key", "x"); return r.URL() },
			func(t *testing.T) { do(t, "del", "key") },
		},
		"memory is full": {meaning{"OOM", nil, store.ErrFull, false}, set("maxmemory", "1"), func(t *testing.T) { set("maxmemory", "0")(t) }},
		"too few replicas": {
			meaning{"NOREPLICAS", nil, store.ErrReadOnly, false}, set("min-replicas-to-write", "1"),
			func(t *testing.T) { set("min-replicas-to-write", "0")(t) },
		},
		"a replica": {
			meaning{"READONLY", nil, store.ErrReadOnly, false},
			func(t *testing.T) string { do(t, "replicaof", "127.0.0.1", "1"); return r.URL() },
			func(t *testing.T) { do(t, "replicaof", "no", "one") },
		},
		"a replica that has lost its primary": {
			meaning{"MASTERDOWN", errFault, store.ErrReadOnly, true},
			func(t *testing.T) string {
				set("replica-serve-stale-data", "no")(t)
				do(t, "replicaof", "127.0.0.1", "1")
				return r.URL()
			},
			func(t *testing.T) { do(t, "replicaof", "no", "one"); set("replica-serve-stale-data", "yes")(t) },
		},
		"snapshots fail": {
			meaning{"MISCONF", nil, store.ErrReadOnly, false},
			func(t *testing.T) string {
				r := testredis.Start(t, "--dir", "/proc", "--save", "3600 1000000")
				c := redis.NewClient(&redis.Options{Addr: r.Addr()})
				defer c.Close()
				_ = c.Set(t.Context(), "key", "value", 0).Err()
				_ = c.BgSave(t.Context()).Err()
				for !strings.Contains(c.Info(t.Context(), "persistence").Val(), "rdb_last_bgsave_status:err") {
					if t.Context().Err() != nil {
						t.Fatal("the snapshot does not fail")
					}
				}
				return r.URL()
			}, nil,
		},
		"no password": {
			meaning{"NOAUTH", redisstore.ErrAuth, redisstore.ErrAuth, true}, set("requirepass", "secret"),
			func(t *testing.T) { set("requirepass", "")(t) },
		},
		"a wrong password": {
			meaning{"WRONGPASS", redisstore.ErrAuth, redisstore.ErrAuth, true},
			func(*testing.T) string { return "redis://nobody:wrong@" + r.Addr() }, nil,
		},
		"a user without rights": {
			meaning{"NOPERM", redisstore.ErrAuth, redisstore.ErrAuth, true},
			func(t *testing.T) string {
				do(t, "acl", "setuser", "poor", "on", ">pw", "~*", "+ping")
				return "redis://poor:pw@" + r.Addr()
			}, nil,
		},
		"a script that does not end": {
			meaning{"BUSY", errFault, errFault, true},
			func(t *testing.T) string {
				set("busy-reply-threshold", "1")(t)
				go admin.Eval(context.Background(), "while true do end", nil)
				for c := redis.NewClient(&redis.Options{Addr: r.Addr()}); ; {
					if err := c.Exists(t.Context(), "key").Err(); err != nil && strings.HasPrefix(err.Error(), "BUSY") {
						_ = c.Close()
						return r.URL()
					}
				}
			},
			func(t *testing.T) {
				c := redis.NewClient(&redis.Options{Addr: r.Addr()})
				defer c.Close()
				for c.Exists(t.Context(), "key").Err() != nil {
					_ = c.ScriptKill(t.Context()).Err()
				}
			},
		},
		"a node of a cluster, asked as one server": {
			meaning{"MOVED", redisstore.ErrMode, redisstore.ErrMode, true},
			func(t *testing.T) string { return "redis://" + node }, nil,
		},
		"a cluster without all slots": {
			meaning{"CLUSTERDOWN", errFault, errFault, true},
			func(t *testing.T) string {
				return "redis://" + testredis.StartImage(t, testredis.DefaultImage, "--cluster-enabled", "yes")
			}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			do(t, "set", "key", "value")
			if strings.Contains(name, "another type") {
				do(t, "del", "key")
			}
			url := c.begin(t)
			if c.end != nil {
				defer c.end(t)
			}
			c.check(t, url)
		})
	}
}

// TestRepliesOfAStub is the same for errors that cannot be provoked at will: the server is a stub that gives them to every command.
func TestRepliesOfAStub(t *testing.T) {
	for text, m := range map[string]meaning{
		"LOADING Redis is loading the dataset in memory": {"LOADING", errFault, errFault, true},
		"ASK 1 127.0.0.1:7001":                           {"ASK", redisstore.ErrMode, redisstore.ErrMode, true},
		"ERR max number of clients reached":              {"max number", errFault, errFault, true},
		"ERR unknown command 'x'":                        {"unknown command", errFault, errFault, true},
		"EVERYTHING is new some day":                     {"EVERYTHING", errFault, errFault, true},
	} {
		t.Run(m.text, func(t *testing.T) { m.check(t, "redis://"+stub(t, text)) })
	}
}

func (m meaning) check(t *testing.T, url string) {
	for op, want := range map[string]error{"read": m.read, "write": m.write} {
		s := open(t, redisstore.Options{URL: url})
		b := store.WithBreaker(s, store.BreakerOptions{Faults: 1})
		// Keys enough that some are another node's.
		var err error
		for i := range 4 {
			key := "key" + strings.Repeat("s", i)
			if op == "write" {
				err = b.Put(t.Context(), []store.Item{{Key: key, Value: make([]byte, 1<<10)}}, time.Hour)
			} else {
				for _, e := range b.Get(t.Context(), []string{key}, [][]byte{make([]byte, 2<<10)}) {
					err = e
				}
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				break
			}
		}
		switch {
		case want == nil:
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %v, want no error", op, err)
			}
			continue
		case err == nil || !strings.Contains(err.Error(), m.text) && errors.Is(m.read, m.write):
			t.Errorf("%s: %v, want %s", op, err, m.text)
		case !errors.Is(want, errFault) && !errors.Is(err, want):
			t.Errorf("%s: %v, want %v", op, err, want)
		}
		opens := m.opens && !errors.Is(want, store.ErrReadOnly)
		if store.IsFault(err) != opens || (b.State() == store.BreakerOpen) != opens {
			t.Errorf("%s: IsFault %v, breaker %v, want %v: %v", op, store.IsFault(err), b.State(), opens, err)
		}
	}
}

// A value of another type under a data key is a miss, and goes away.
func TestAValueOfAnotherTypeIsDiscarded(t *testing.T) {
	r := pool.Get(t)
	admin := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer admin.Close()
	s := open(t, redisstore.Options{URL: r.URL()})
	if err := put(t, s, "a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(admin.LPush(t.Context(), "list", "x").Err(), admin.HSet(t.Context(), "hash", "f", "x").Err()); err != nil {
		t.Fatal(err)
	}
	keys := []string{"list", "a", "hash"}
	i := 0
	for n, err := range s.Get(t.Context(), keys, [][]byte{make([]byte, 9), make([]byte, 9), make([]byte, 9)}) {
		if i == 1 && (n != 1 || err != nil) || i != 1 && (!errors.Is(err, store.ErrNotValue) || store.IsFault(err)) {
			t.Errorf("Get %s: %d, %v", keys[i], n, err)
		}
		i++
	}
	for _, k := range keys {
		deleted, err := s.Discard(t.Context(), k, 100, func(value []byte) bool {
			if k != "a" {
				t.Errorf("%s was shown: %q", k, value)
			}
			return false
		})
		if deleted != (k != "a") || err != nil {
			t.Errorf("Discard(%s) = %v, %v", k, deleted, err)
		}
	}
	if n, err := s.Lead(t.Context(), []string{"a", "list"}); n != 1 || err != nil {
		t.Errorf("Lead afterwards = %d, %v", n, err)
	}
	if fmt.Sprint(admin.Exists(t.Context(), "list", "hash").Val()) != "0" {
		t.Error("values of other types are left")
	}
}

package main

import (
	"context"
	"fmt"
	"time"

	rediscache "github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/vmihailenco/msgpack/v5"
)

// kv is a block as a program would declare it for a cache that serialises.
type kv struct {
	Layers  int    `msgpack:"layers"`
	Tokens  int    `msgpack:"tokens"`
	Payload []byte `msgpack:"payload"`
}

// ttl removes what a run that was killed left behind.
const ttl = 10 * time.Minute

// contenders opens every way of reading and writing that is compared, over conns connections each.
func contenders(addr, username, password string, conns, valueBytes int) ([]*contender, error) {
	all := goRedisContenders(goRedisClient(addr, username, password, conns), conns, valueBytes)
	all = append(all, cacheContenders(goRedisClient(addr, username, password, conns))...)
	more, err := rueidisContenders(rueidis.ClientOption{InitAddress: []string{addr}, Username: username, Password: password,
		PipelineMultiplex: multiplex(conns), BlockingPoolSize: conns, CacheSizeEachConn: 1 << 30}, conns, valueBytes)
	return append(all, more...), err
}

func goRedisClient(addr, username, password string, conns int) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addr, Username: username, Password: password, PoolSize: conns})
}

func goRedisContenders(c *redis.Client, conns, valueBytes int) []*contender {
	const library = "github.com/redis/go-redis/v9"
	bufs := make([][]byte, conns)
	for i := range bufs {
		bufs[i] = make([]byte, valueBytes+2)
	}
	return []*contender{
		{name: "go-redis Get().Bytes()", library: library, putName: "go-redis Set of bytes",
			put: func(ctx context.Context, key string, value []byte) error { return c.Set(ctx, key, value, ttl).Err() },
			get: func(ctx context.Context, _ int, key string) (int, error) {
				b, err := c.Get(ctx, key).Bytes()
				return len(b), err
			}, close: func() { _ = c.Close() }},
		{name: "go-redis MGET of 16", library: library, like: "go-redis Get().Bytes()",
			getMany: func(ctx context.Context, keys []string) (sum int, err error) {
				all, err := c.MGet(ctx, keys...).Result()
				for _, v := range all {
					s, _ := v.(string)
					sum += len(s)
				}
				return sum, err
			}},
		{name: "go-redis GetToBuffer", library: library, like: "go-redis Get().Bytes()",
			get: func(ctx context.Context, worker int, key string) (int, error) {
				return c.GetToBuffer(ctx, key, bufs[worker]).Result()
			}},
		{name: "go-redis + msgpack struct", library: library, putName: "go-redis + msgpack struct",
			put: func(ctx context.Context, key string, value []byte) error {
				b, err := msgpack.Marshal(&kv{32, 16, value})
				if err != nil {
					return err
				}
				return c.Set(ctx, key, b, ttl).Err()
			},
			get: func(ctx context.Context, _ int, key string) (int, error) {
				b, err := c.Get(ctx, key).Bytes()
				if err != nil {
					return 0, err
				}
				var v kv
				err = msgpack.Unmarshal(b, &v)
				return len(v.Payload), err
			}},
	}
}

// cacheContenders use go-redis/cache without its local cache: that one is among the hot tiers.
func cacheContenders(c *redis.Client) []*contender {
	const library = "github.com/go-redis/cache/v9"
	cache := rediscache.New(&rediscache.Options{Redis: c})
	return []*contender{
		{name: "go-redis/cache bytes", library: library, putName: "go-redis/cache bytes",
			put: func(ctx context.Context, key string, value []byte) error {
				return cache.Set(&rediscache.Item{Ctx: ctx, Key: key, Value: value, TTL: ttl})
			},
			get: func(ctx context.Context, _ int, key string) (int, error) {
				var b []byte
				err := cache.Get(ctx, key, &b)
				return len(b), err
			}, close: func() { _ = c.Close() }},
		{name: "go-redis/cache struct", library: library, putName: "go-redis/cache struct",
			put: func(ctx context.Context, key string, value []byte) error {
				return cache.Set(&rediscache.Item{Ctx: ctx, Key: key, Value: &kv{32, 16, value}, TTL: ttl})
			},
			get: func(ctx context.Context, _ int, key string) (int, error) {
				var v kv
				err := cache.Get(ctx, key, &v)
				return len(v.Payload), err
			}},
	}
}

// rueidisContenders have two clients: one plain, one with client-side caching, which tracks every key it read.
func rueidisContenders(o rueidis.ClientOption, conns, valueBytes int) ([]*contender, error) {
	const library = "github.com/redis/rueidis"
	tracked, err := rueidis.NewClient(o)
	if err != nil {
		return nil, fmt.Errorf("rueidis: %w", err)
	}
	o.DisableCache = true
	plain, err := rueidis.NewClient(o)
	if err != nil {
		tracked.Close()
		return nil, fmt.Errorf("rueidis: %w", err)
	}
	bufs := make([]*sink, conns)
	for i := range bufs {
		bufs[i] = &sink{buf: make([]byte, valueBytes+512)}
	}
	return []*contender{
		{name: "rueidis Get AsBytes", library: library, putName: "rueidis Set of bytes",
			put: func(ctx context.Context, key string, value []byte) error {
				return plain.Do(ctx, plain.B().Set().Key(key).Value(rueidis.BinaryString(value)).Px(ttl).Build()).Error()
			},
			get: func(ctx context.Context, _ int, key string) (int, error) {
				b, err := plain.Do(ctx, plain.B().Get().Key(key).Build()).AsBytes()
				return len(b), err
			}, close: plain.Close},
		{name: "rueidis DoStream into a buffer", library: library, like: "rueidis Get AsBytes",
			get: func(ctx context.Context, worker int, key string) (int, error) {
				bufs[worker].n = 0
				s := plain.DoStream(ctx, plain.B().Get().Key(key).Build())
				n, err := s.WriteTo(bufs[worker])
				return int(n), err
			}},
		{name: "rueidis client-side caching, miss", library: library, like: "rueidis Get AsBytes",
			get: func(ctx context.Context, _ int, key string) (int, error) {
				// kept for a millisecond: it has expired when the same key comes round again
				r := tracked.DoCache(ctx, tracked.B().Get().Key(key).Cache(), time.Millisecond)
				b, err := r.AsBytes()
				if err == nil && r.IsCacheHit() {
					err = fmt.Errorf("%s is a hit, not a miss: measure with more --data-bytes", key)
				}
				return len(b), err
			}, close: tracked.Close},
	}, nil
}

// multiplex is rueidis' way to say how many connections share the pipelined requests: a power of two.
func multiplex(conns int) int {
	exponent := 0
	for 1<<exponent < conns {
		exponent++
	}
	if exponent == 0 {
		return -1 // rueidis: one connection
	}
	return exponent
}

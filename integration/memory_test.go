package integration

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// From 256 KiB on, a block takes at most 1.06 times its payload of Redis' memory, names and all, whatever the allocator; below, what
// Layout.Charged says. docs/decisions/020-size-classes.md has what this prints.
func TestBlocksFillTheServersSizeClasses(t *testing.T) {
	servers := map[string]func(t *testing.T) string{
		"redis container":  func(t *testing.T) string { return testredis.StartImage(t, testredis.DefaultImage) },
		"valkey container": func(t *testing.T) string { return testredis.StartImage(t, testredis.ValkeyImage) },
		"debian container": func(t *testing.T) string { return testredis.StartImage(t, "redis:7.0.15") },
	}
	layout := func(layers, heads, dim, tokens int, q block.Quant) block.Layout {
		return block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: layers, KVHeads: heads, HeadDim: dim, BlockTokens: tokens, TPSize: 1,
			RopeBase: 1, RopeScale: 1, Numerics: "llama/3 and some more words", Quant: q}
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			addr := start(t)
			ctx := t.Context()
			c := redis.NewClient(&redis.Options{Addr: addr, Protocol: 2})
			defer c.Close()
			t.Logf("%s %s%s, %s", info(t, c, "redis_version"), info(t, c, "server_name"), info(t, c, "valkey_version"), info(t, c, "mem_allocator"))
			for _, l := range []struct {
				name string
				block.Layout
			}{
				{"4 × 8 KiB", layout(4, 4, 32, 16, 0)}, {"8 × 32 KiB", layout(8, 8, 64, 16, 0)}, {"Llama-3.2-1B", layout(16, 8, 64, 16, 0)},
				{"26 × 16 KiB", layout(26, 4, 64, 16, 0)}, {"Llama-3-8B", layout(32, 8, 128, 16, 0)}, {"Llama-3-8B int8", layout(32, 8, 128, 16, block.QuantInt8)},
				{"Qwen3-8B", layout(36, 8, 128, 16, 0)}, {"Llama-3-70B", layout(80, 8, 128, 16, 0)}, {"Llama-3-8B, 64 tokens", layout(32, 8, 128, 64, 0)},
			} {
				usage, used := memoryOf(ctx, t, c, addr, l.Layout)
				payload := float64(l.BlockBytes())
				t.Logf("%-22s %5d KiB in %d parts: MEMORY USAGE %.3f, used_memory %.3f of the payload", l.name, l.BlockBytes()>>10, l.PartCount(), usage/payload, used/payload)
				limit := 1.06
				if l.BlockBytes() < block.MinCutBytes {
					limit = (float64(l.Charged()) + 400*float64(l.PartCount())) / payload
				}
				if usage/payload > limit || used/payload > limit+0.01 { // used_memory has the table of keys besides
					t.Errorf("%s: MEMORY USAGE %.3f and used_memory %.3f of the payload, want %.3f", l.name, usage/payload, used/payload, limit)
				}
			}
		})
	}
}

// memoryOf stores blocks, 32 MiB of them, and returns what each takes according to MEMORY USAGE and to used_memory.
func memoryOf(ctx context.Context, t *testing.T, c *redis.Client, addr string, l block.Layout) (usage, used float64) {
	t.Helper()
	f, err := codec.NewFormat(l)
	if err != nil {
		t.Fatal(err)
	}
	id := block.Identity{Weights: block.Digest{1}, Layout: l.Digest()}
	names := block.NewKeys(id.Variant(), 1_700_000_000_000, l.PartCount())
	n := max(4, 32<<20/l.BlockBytes())
	hashes := make([]block.Hash, n)
	if err := c.Do(ctx, "flushall", "sync").Err(); err != nil {
		t.Fatal(err)
	}
	held := func() float64 { // when nobody else is connected: what connections read into counts as well
		for info(t, c, "connected_clients") != "1" {
			if err := ctx.Err(); err != nil {
				t.Fatal(err)
			}
		}
		n, _ := strconv.ParseFloat(info(t, c, "used_memory"), 64)
		return n
	}
	before := held()
	s, err := redisstore.Open(redisstore.Options{URL: "redis://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.NewChaCha8([32]byte{1})
	for i := range hashes {
		hashes[i] = block.Hash{byte(i), byte(i >> 8), 1}
		var items []store.Item
		for p, key := range names.Append(nil, hashes[i:i+1]) {
			frame := make([]byte, f.FrameBytes(f.Parts()[p]))
			_, _ = rng.Read(f.Payload(frame))
			if err := f.Seal(frame, codec.Header{Identity: id, Epoch: 1_700_000_000_000, Hash: hashes[i], Part: p}); err != nil {
				t.Fatal(err)
			}
			items = append(items, store.Item{Key: key, Value: frame})
		}
		if err := s.Put(ctx, items, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, key := range names.Append(nil, hashes) {
		b, err := c.MemoryUsage(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		usage += float64(b)
	}
	return usage / float64(n), (held() - before) / float64(n)
}

// info is one field of INFO, empty if the server has none of that name.
func info(t *testing.T, c *redis.Client, field string) string {
	t.Helper()
	text, err := c.Info(t.Context(), "everything").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(text, "\r\n") {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return value
		}
	}
	return ""
}

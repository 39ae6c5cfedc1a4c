package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	rediscache "github.com/go-redis/cache/v9"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"
	"github.com/redis/rueidis"

	"github.com/kvtier/kvtier/internal/bench"
)

// hotContender finds a block in this process's memory.
type hotContender struct {
	name, library string
	// gives is what a caller holds after a hit: it decides whether an entry may be evicted and its memory reused under the reader.
	gives string
	// walk looks up all the keys and returns the payload found.
	walk  func(ctx context.Context) (int, error)
	work  func(ctx context.Context, goroutines int) (bench.Work, error) // instead of walk
	close func()
}

const (
	hotBlockBytes = 2 << 20
	hotBlocks     = 32
	// hotWalks is how many prompts one call looks up on each goroutine.
	hotWalks = 128

	aliased = "the value in the garbage-collected heap, nothing pinned"
)

// hotContenders fill every cache with the same blocks. Those that need Redis are left out without addr.
func hotContenders(ctx context.Context, addr, username, password, prefix string) (all []*hotContender, err error) {
	tier, err := bench.NewHotTier(hotBlockBytes, hotBlocks)
	if err != nil {
		return nil, err
	}
	kvtier := func(walk int) func(context.Context, int) (bench.Work, error) {
		return func(ctx context.Context, goroutines int) (bench.Work, error) {
			return tier.Hits(ctx, goroutines, walk, hotWalks*hotBlocks)
		}
	}
	const pinned = "a pinned read-only view, released by the caller"
	all = append(all,
		&hotContender{name: fmt.Sprintf("kvtier, a prompt of %d blocks", hotBlocks), library: module, gives: pinned, work: kvtier(hotBlocks), close: tier.Close},
		&hotContender{name: "kvtier, one block at a time", library: module, gives: pinned, work: kvtier(1)})

	var hashes [hotBlocks][32]byte
	var names [hotBlocks]string
	var blocks [hotBlocks][]byte
	for i := range hotBlocks {
		hashes[i] = [32]byte{byte(i), 1}
		names[i] = prefix + string(hashes[i][:])
		blocks[i] = make([]byte, hotBlockBytes)
		blocks[i][0] = byte(i)
	}

	o, err := otter.New(&otter.Options[[32]byte, []byte]{MaximumWeight: 1 << 30, Weigher: func(_ [32]byte, v []byte) uint32 { return uint32(len(v)) }})
	if err != nil {
		return all, err
	}
	l, err := lru.New[[32]byte, []byte](1 << 20)
	if err != nil {
		return all, err
	}
	r, err := ristretto.NewCache(&ristretto.Config[string, []byte]{NumCounters: 1 << 14, MaxCost: 1 << 30, BufferItems: 64})
	if err != nil {
		return all, err
	}
	tiny := rediscache.New(&rediscache.Options{LocalCache: rediscache.NewTinyLFU(10000, time.Hour)})
	for i := range hotBlocks {
		o.Set(hashes[i], blocks[i])
		l.Add(hashes[i], blocks[i])
		r.Set(names[i], blocks[i], hotBlockBytes)
		if err := tiny.Set(&rediscache.Item{Ctx: ctx, Key: names[i], Value: blocks[i], TTL: time.Hour}); err != nil {
			return all, err
		}
	}
	r.Wait()
	lookup := func(get func(i int) ([]byte, bool)) func(context.Context) (int, error) {
		return func(context.Context) (int, error) {
			sum := 0
			for i := range hotBlocks {
				v, ok := get(i)
				if !ok {
					return sum, errors.New("a miss")
				}
				sum += len(v)
			}
			return sum, nil
		}
	}
	all = append(all,
		&hotContender{name: "otter v2", library: "github.com/maypok86/otter/v2", gives: aliased,
			walk: lookup(func(i int) ([]byte, bool) { return o.GetIfPresent(hashes[i]) })},
		&hotContender{name: "golang-lru v2", library: "github.com/hashicorp/golang-lru/v2", gives: aliased,
			walk: lookup(func(i int) ([]byte, bool) { return l.Get(hashes[i]) })},
		&hotContender{name: "ristretto v2", library: "github.com/dgraph-io/ristretto/v2", gives: aliased,
			walk: lookup(func(i int) ([]byte, bool) { return r.Get(names[i]) }), close: r.Close},
		&hotContender{name: "go-redis/cache TinyLFU, bytes", library: "github.com/go-redis/cache/v9", gives: "a copy",
			walk: lookup(func(i int) ([]byte, bool) {
				var b []byte
				err := tiny.Get(ctx, names[i], &b)
				return b, err == nil
			})})
	if addr == "" {
		return all, nil
	}
	tracked, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, Username: username, Password: password, CacheSizeEachConn: 1 << 30})
	if err != nil {
		return all, fmt.Errorf("rueidis: %w", err)
	}
	for i := range hotBlocks {
		if err := tracked.Do(ctx, tracked.B().Set().Key(names[i]).Value(rueidis.BinaryString(blocks[i])).Px(ttl).Build()).Error(); err != nil {
			return all, fmt.Errorf("rueidis: %w", err)
		}
	}
	return append(all, &hotContender{name: "rueidis client-side caching, hit", library: "github.com/redis/rueidis", gives: aliased,
		walk: func(ctx context.Context) (sum int, err error) {
			for i := range hotBlocks {
				b, err := tracked.DoCache(ctx, tracked.B().Get().Key(names[i]).Cache(), ttl).AsBytes()
				if err != nil {
					return sum, err
				}
				sum += len(b)
			}
			return sum, nil
		},
		close: func() {
			for i := range hotBlocks {
				_ = tracked.Do(context.WithoutCancel(ctx), tracked.B().Unlink().Key(names[i]).Build()).Error() // has a TTL
			}
			tracked.Close()
		}}), nil
}

// method looks prompts up on some goroutines at once.
func (h *hotContender) method(goroutines int) bench.Method {
	if h.work != nil {
		return bench.Method{Name: h.name, Do: func(ctx context.Context) (bench.Work, error) { return h.work(ctx, goroutines) }}
	}
	walks := hotWalks
	if h.gives == "a copy" {
		walks = 1 // 64 MiB are enough for one call
	}
	return bench.Method{Name: h.name, Do: func(ctx context.Context) (bench.Work, error) {
		errs := make([]error, goroutines)
		one := func(g int) {
			for range walks {
				if n, err := h.walk(ctx); err != nil || n != hotBlocks*hotBlockBytes {
					errs[g] = errors.Join(fmt.Errorf("found %d bytes", n), err)
					return
				}
			}
		}
		var wg sync.WaitGroup
		for g := range goroutines - 1 {
			wg.Go(func() { one(g + 1) })
		}
		one(0)
		wg.Wait()
		return bench.Work{Ops: int64(goroutines * walks * hotBlocks)}, errors.Join(errs...)
	}}
}

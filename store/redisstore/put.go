package redisstore

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"time"

	"github.com/kvtier/kvtier/store"
)

// Put implements store.Store with one SET … PX per item: a value is never there in part. Items travel in pipelines of at most
// 4 MiB, two at once per server. The TTL is lengthened at random by at most Options.TTLJitter of it, and rounded up to the
// millisecond; the items of one call get the same TTL, because the parts of a block are useless without each other.
func (s *Store) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	if err := s.usable(ctx); err != nil {
		return &opError{"put", "", err}
	}
	if key, err := store.CheckPut(items, ttl); err != nil {
		return &opError{"put", key, err}
	}
	if len(items) == 0 {
		return nil
	}
	b := s.newBatch(len(items))
	b.items = items
	b.ttlMS = int64(jittered(ttl, s.opts.TTLJitter, rand.Float64()) / time.Millisecond)
	defer b.free()
	if err := b.plan(ctx); err != nil {
		return wrap(ctx, "put", items[0].Key, err)
	}
	if b.alone() {
		b.putSpan(ctx, &b.courses[0], b.courses[0].spans[0])
	} else {
		b.launch(ctx, (*batch).putSpan)
		b.wg.Wait()
	}
	var errs []error
	for i := range b.results {
		if err := b.results[i].err; err != nil {
			if errs == nil {
				errs = make([]error, len(items))
			}
			errs[i] = err
		}
	}
	return store.Batch(errs)
}

// putSpan stores the items of sp in one round trip, unless their server has refused some already: one that is full or sick is not asked again.
func (b *batch) putSpan(ctx context.Context, c *course, sp span) {
	if err := c.refused.Load(); err != nil {
		b.fail(ctx, "put", sp, *err)
		return
	}
	err := b.s.carry(ctx, c.lane.puts, 1, func() { b.putPipeline(ctx, sp) })
	if err != nil {
		b.fail(ctx, "put", sp, err)
	}
	for _, i := range b.order[sp.from:sp.to] {
		if e, failed := errors.AsType[*opError](b.results[i].err); failed {
			c.refused.Store(&e.err)
			return
		}
	}
}

func (b *batch) putPipeline(ctx context.Context, sp span) {
	if sp.to-sp.from == 1 {
		i := b.order[sp.from]
		if err := b.s.client.Process(ctx, b.setCommand(i)); err != nil {
			b.results[i].err = wrap(ctx, "put", b.items[i].Key, b.s.blame(ctx, b.items[i].Key, b.s.diagnose(ctx, err)))
		}
		return
	}
	pipe := b.s.client.Pipeline()
	for _, i := range b.order[sp.from:sp.to] {
		_ = pipe.Process(ctx, b.setCommand(i)) // queues only
	}
	cmds, _ := pipe.Exec(ctx)
	for j, cmd := range cmds {
		if err := cmd.Err(); err != nil {
			i := b.order[sp.from+j]
			b.results[i].err = wrap(ctx, "put", b.items[i].Key, b.s.blame(ctx, b.items[i].Key, err))
		}
	}
}

// jittered lengthens ttl by at most part of it, for random in [0, 1), and rounds it up to whole milliseconds.
func jittered(ttl time.Duration, part, random float64) time.Duration {
	extra := max(0, part) * random * float64(ttl)
	if room := float64(math.MaxInt64/2 - ttl); extra > room {
		extra = max(0, room)
	}
	ttl += time.Duration(extra)
	if rest := ttl % time.Millisecond; rest > 0 {
		ttl += time.Millisecond - rest
	}
	return ttl
}

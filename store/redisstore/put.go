package redisstore

import (
	"context"
	"math"
	"math/rand/v2"
	"time"

	"github.com/kvtier/kvtier/store"
)

// Put implements store.Store with one SET … PX per item: a value is never there in part. Small items travel in pipelines, and up
// to three round trips run at once. The TTL is lengthened at random by at most Options.TTLJitter of it, and rounded up to the
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
	ttl = jittered(ttl, s.opts.TTLJitter, rand.Float64())
	spans := spansOf(len(items), func(i int) int { return len(items[i].Key) + len(items[i].Value) })
	if len(spans) == 1 {
		return s.putSpan(ctx, spans[0], items, ttl)
	}
	errs := make([]error, len(spans))
	f := launch(ctx, spans, func(ctx context.Context, i int) { errs[i] = s.putSpan(ctx, spans[i], items, ttl) })
	defer f.stop()
	for i := range spans {
		<-f.done[i]
		if errs[i] != nil { // what has not begun is not sent: a full or sick server is not asked again
			return errs[i]
		}
	}
	return nil
}

// putSpan returns the first error of one round trip.
func (s *Store) putSpan(ctx context.Context, sp span, items []store.Item, ttl time.Duration) error {
	items = items[sp.from:sp.to]
	var first error
	err := s.carry(ctx, sp.bytes, func() {
		if len(items) == 1 {
			if err := s.client.Set(ctx, items[0].Key, items[0].Value, ttl).Err(); err != nil {
				first = wrap(ctx, "put", items[0].Key, err)
			}
			return
		}
		pipe := s.client.Pipeline()
		for _, it := range items {
			pipe.Set(ctx, it.Key, it.Value, ttl)
		}
		cmds, _ := pipe.Exec(ctx)
		for i, cmd := range cmds {
			if err := cmd.Err(); err != nil {
				first = wrap(ctx, "put", items[i].Key, err)
				return
			}
		}
	})
	if err != nil {
		return wrap(ctx, "put", items[0].Key, err)
	}
	return first
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

package redisstore

import (
	"context"
	"iter"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// Get implements store.Store. Replies are read from the socket into the caller's buffers. Large values travel one per round
// trip, small ones in short pipelines, and up to three round trips per server run at once; the loop body runs meanwhile. A value
// that does not fit its buffer costs two more round trips and a connection, which the next call replaces.
//
// When the loop ends early, Get waits for the round trips in flight, because they write into the caller's buffers: at most
// until the context's deadline or Options.Timeout, whichever is sooner.
func (s *Store) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		if err := store.CheckGet(keys, bufs); err != nil {
			for _, k := range keys {
				if !yield(0, &opError{"get", k, err}) {
					return
				}
			}
			return
		}
		if len(keys) == 0 {
			return
		}
		b := s.newBatch(len(keys))
		b.keys, b.bufs = keys, bufs
		defer b.free()
		if err := b.plan(ctx); err != nil {
			for _, k := range keys {
				if !yield(0, wrap(ctx, "get", k, err)) {
					return
				}
			}
			return
		}
		if b.alone() { // no goroutine for what is one round trip
			b.getSpan(ctx, &b.courses[0], b.courses[0].spans[0])
			for i := range b.results {
				if !yield(b.results[i].n, b.results[i].err) {
					return
				}
			}
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		b.launch(ctx, (*batch).getSpan)
		defer b.stop(cancel) // also when the loop body panics
		for i := range keys {
			if r := b.await(i); !yield(r.n, r.err) {
				return
			}
		}
	}
}

// getSpan sets the result of each key of sp, whatever happens.
func (b *batch) getSpan(ctx context.Context, c *course, sp span) {
	l := c.lane
	if h := b.s.hedge; h != nil && h.ready() {
		b.getHedged(ctx, h, l, sp)
		return
	}
	b.read(ctx, ctx, l, sp)
}

// read is getSpan without a hedge. wait bounds how long it waits for its turn, trip the round trip.
func (b *batch) read(wait, trip context.Context, l *lane, sp span) {
	err := acquire(wait, l.reading, 1)
	if err == nil {
		defer l.reading.Release(1)
		err = b.s.carry(wait, l.gets, min(sp.bytes, l.max), func() {
			if fits := b.getPipeline(trip, sp); !fits {
				b.getFitting(trip, sp)
			}
		})
	}
	if err != nil {
		b.fail(wait, "get", sp, err)
	}
}

// getPipeline reads sp in one round trip. It returns false if one of several values does not fit its buffer: the client then
// gives up on the pipeline and reports that error for every command of it, so that nothing is known about any key.
func (b *batch) getPipeline(ctx context.Context, sp span) bool {
	if sp.to-sp.from == 1 {
		i := b.order[sp.from]
		cmd := b.getCommand(i)
		_ = b.client.Process(ctx, cmd)
		b.received(ctx, i, cmd)
		return true
	}
	pipe := b.client.Pipeline()
	for _, i := range b.order[sp.from:sp.to] {
		_ = pipe.Process(ctx, b.getCommand(i)) // queues only
	}
	cmds, _ := pipe.Exec(ctx) // each command has its own error
	fits := true
	for j, cmd := range cmds {
		b.received(ctx, b.order[sp.from+j], cmd.(*redis.ZeroCopyStringCmd))
		fits = fits && !isTooSmall(cmd.Err())
	}
	return fits
}

// getFitting asks for the lengths first and reads only what fits: two more round trips, for callers whose layout has changed.
func (b *batch) getFitting(ctx context.Context, sp span) {
	pipe := b.client.Pipeline()
	for _, i := range b.order[sp.from:sp.to] {
		pipe.StrLen(ctx, b.keys[i])
	}
	cmds, _ := pipe.Exec(ctx)
	var fit []int32
	for j, cmd := range cmds {
		i := b.order[sp.from+j]
		n, err := cmd.(*redis.IntCmd).Result()
		switch {
		case err != nil:
			b.results[i] = result{err: wrap(ctx, "get", b.keys[i], b.s.blame(ctx, b.keys[i], err))}
		case int(n) > len(b.bufs[i])-store.Spare:
			b.results[i] = result{err: &opError{"get", b.keys[i], store.ErrTooLarge}}
		default: // 0 may be a missing key
			fit = append(fit, i)
		}
	}
	if len(fit) == 0 {
		return
	}
	pipe = b.client.Pipeline()
	for _, i := range fit {
		_ = pipe.Process(ctx, b.getCommand(i))
	}
	cmds, _ = pipe.Exec(ctx)
	for j, cmd := range cmds {
		b.received(ctx, fit[j], cmd.(*redis.ZeroCopyStringCmd))
	}
}

// received takes the outcome of a command as key i's result.
func (b *batch) received(ctx context.Context, i int32, cmd *redis.ZeroCopyStringCmd) {
	n, err := cmd.Result()
	switch {
	case err != nil:
		b.results[i] = result{err: wrap(ctx, "get", b.keys[i], b.s.blame(ctx, b.keys[i], err))}
	case n > len(b.bufs[i])-store.Spare: // the client would use the spare bytes
		b.results[i] = result{err: &opError{"get", b.keys[i], store.ErrTooLarge}}
	default:
		b.results[i] = result{n: n}
	}
}

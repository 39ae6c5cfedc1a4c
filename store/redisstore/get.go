package redisstore

import (
	"context"
	"fmt"
	"iter"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// result is what Get yields for one key.
type result struct {
	n   int
	err error
}

// Get implements store.Store. Replies are read from the socket into the caller's buffers. Large values travel one per round
// trip, small ones in short pipelines, and up to three round trips run at once; the loop body runs meanwhile. A value that does not
// fit its buffer costs two more round trips and a connection, which the next call replaces.
//
// When the loop ends early, Get waits for the round trips in flight, because they write into the caller's buffers: at most
// until the context's deadline or Options.Timeout, whichever is sooner.
func (s *Store) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	if len(keys) != len(bufs) {
		panic(fmt.Sprintf("redisstore: Get with %d keys and %d buffers", len(keys), len(bufs)))
	}
	return func(yield func(int, error) bool) {
		if len(keys) == 0 {
			return
		}
		spans := spansOf(len(keys), func(i int) int { return len(bufs[i]) })
		results := make([]result, len(keys))
		move := func(ctx context.Context, i int) {
			sp := spans[i]
			s.getSpan(ctx, sp, keys[sp.from:sp.to], bufs[sp.from:sp.to], results[sp.from:sp.to])
		}
		if len(spans) == 1 { // no goroutine for what is one round trip
			move(ctx, 0)
			yieldAll(results, yield)
			return
		}
		f := launch(ctx, spans, move)
		defer f.stop() // also when the loop body panics
		for i, sp := range spans {
			<-f.done[i]
			if !yieldAll(results[sp.from:sp.to], yield) {
				return
			}
		}
	}
}

func yieldAll(results []result, yield func(int, error) bool) bool {
	for _, r := range results {
		if !yield(r.n, r.err) {
			return false
		}
	}
	return true
}

// getSpan fills results, one for each key, whatever happens.
func (s *Store) getSpan(ctx context.Context, sp span, keys []string, bufs [][]byte, results []result) {
	err := s.carry(ctx, sp.bytes, func() {
		if fits := s.getPipeline(ctx, keys, bufs, results); !fits {
			s.getFitting(ctx, keys, bufs, results)
		}
	})
	if err != nil {
		for i := range results {
			results[i] = result{err: wrap(ctx, "get", keys[i], err)}
		}
	}
}

// getPipeline reads keys in one round trip. It returns false if one of several values does not fit its buffer: the client then
// gives up on the pipeline and reports that error for every command of it, so that nothing is known about any key.
func (s *Store) getPipeline(ctx context.Context, keys []string, bufs [][]byte, results []result) bool {
	if len(keys) == 1 {
		results[0] = resultOf(ctx, keys[0], bufs[0], s.client.GetToBuffer(ctx, keys[0], bufs[0]))
		return true
	}
	pipe := s.client.Pipeline()
	for i, k := range keys {
		pipe.GetToBuffer(ctx, k, bufs[i])
	}
	cmds, _ := pipe.Exec(ctx) // each command has its own error
	fits := true
	for i, cmd := range cmds {
		cmd := cmd.(*redis.ZeroCopyStringCmd)
		results[i] = resultOf(ctx, keys[i], bufs[i], cmd)
		fits = fits && !isTooSmall(cmd.Err())
	}
	return fits
}

// getFitting asks for the lengths first and reads only what fits: two more round trips, for callers whose layout has changed.
func (s *Store) getFitting(ctx context.Context, keys []string, bufs [][]byte, results []result) {
	pipe := s.client.Pipeline()
	for _, k := range keys {
		pipe.StrLen(ctx, k)
	}
	cmds, _ := pipe.Exec(ctx)
	var fit []int
	for i, cmd := range cmds {
		n, err := cmd.(*redis.IntCmd).Result()
		switch {
		case err != nil:
			results[i] = result{err: wrap(ctx, "get", keys[i], err)}
		case int(n) > len(bufs[i])-store.Spare:
			results[i] = result{err: &opError{"get", keys[i], store.ErrTooLarge}}
		default: // 0 may be a missing key
			fit = append(fit, i)
		}
	}
	if len(fit) == 0 {
		return
	}
	pipe = s.client.Pipeline()
	for _, i := range fit {
		pipe.GetToBuffer(ctx, keys[i], bufs[i])
	}
	cmds, _ = pipe.Exec(ctx)
	for j, cmd := range cmds {
		i := fit[j]
		results[i] = resultOf(ctx, keys[i], bufs[i], cmd.(*redis.ZeroCopyStringCmd))
	}
}

func resultOf(ctx context.Context, key string, buf []byte, cmd *redis.ZeroCopyStringCmd) result {
	n, err := cmd.Result()
	switch {
	case err != nil:
		return result{err: wrap(ctx, "get", key, err)}
	case n > len(buf)-store.Spare: // the client would use the spare bytes
		return result{err: &opError{"get", key, store.ErrTooLarge}}
	}
	return result{n: n}
}

package redisstore

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

var _ store.Leaser = (*Store)(nil)

// Lease implements store.Leaser with SET … PX NX, GET and PTTL in one pipeline. A claim that ends between two of them is one that others
// may take, and is reported with nothing left.
func (s *Store) Lease(ctx context.Context, key, note string, ttl time.Duration) (store.Lease, error) {
	if err := s.usable(ctx); err != nil {
		return store.Lease{}, &opError{"lease", key, err}
	}
	if err := store.CheckLease(key, note, ttl); err != nil {
		return store.Lease{}, &opError{"lease", key, err}
	}
	type claim struct {
		store.Lease
		err error
	}
	got, late := ask(ctx, s, key, "lease", func(ctx context.Context) (c claim) {
		c.Lease, c.err = s.claim(ctx, key, note, ttl)
		return c
	})
	if late != nil {
		return store.Lease{}, late
	}
	return got.Lease, got.err
}

func (s *Store) claim(ctx context.Context, key, note string, ttl time.Duration) (store.Lease, error) {
	pipe := s.client.Pipeline()
	set := pipe.SetArgs(ctx, key, note, redis.SetArgs{Mode: "NX", TTL: ttl.Truncate(time.Millisecond)})
	get, left := pipe.Get(ctx, key), pipe.PTTL(ctx, key)
	_, _ = pipe.Exec(ctx) // each command has its own error
	err := set.Err()
	if err == nil {
		return store.Lease{Granted: true}, nil
	}
	if errors.Is(err, redis.Nil) { // held
		if err = get.Err(); err == nil || errors.Is(err, redis.Nil) {
			err = left.Err()
		}
	}
	if err != nil {
		return store.Lease{}, wrap(ctx, "lease", key, s.diagnose(ctx, err))
	}
	return store.Lease{Note: get.Val(), Left: max(0, left.Val())}, nil
}

package redisstore

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

var _ store.Pinner = (*Store)(nil)

// pinKeys is how many keys one pipeline pins at most.
const pinKeys = 512

// Pin implements store.Pinner with PERSIST and EXISTS: a value without a TTL is no candidate under the volatile policies, which are those
// that Check asks for.
func (s *Store) Pin(ctx context.Context, keys []string) (int, error) {
	lead, gap := 0, false
	for len(keys) > 0 {
		n := min(len(keys), pinKeys)
		there := make([]*redis.IntCmd, n)
		err := s.each(ctx, "pin", keys[:n], func(p redis.Pipeliner, i int) redis.Cmder {
			cmd := p.Persist(ctx, keys[i])
			there[i] = p.Exists(ctx, keys[i])
			return cmd
		})
		if err != nil {
			return lead, err
		}
		for _, cmd := range there {
			gap = gap || cmd.Val() == 0
			if !gap {
				lead++
			}
		}
		keys = keys[n:]
	}
	return lead, nil
}

// Unpin implements store.Pinner with PEXPIRE … NX, which leaves a TTL alone that is there.
func (s *Store) Unpin(ctx context.Context, keys []string, ttl time.Duration) error {
	if ttl < time.Millisecond {
		return &opError{"unpin", "", store.ErrInvalid}
	}
	for len(keys) > 0 {
		n := min(len(keys), pinKeys)
		if err := s.each(ctx, "unpin", keys[:n], func(p redis.Pipeliner, i int) redis.Cmder {
			return p.Do(ctx, "pexpire", keys[i], ttl.Milliseconds(), "nx")
		}); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// each sends the commands that queue makes for every key in one pipeline; the error is that of the first that failed.
func (s *Store) each(ctx context.Context, op string, keys []string, queue func(p redis.Pipeliner, i int) redis.Cmder) error {
	if err := s.usable(ctx); err != nil {
		return &opError{op, "", err}
	}
	pipe := s.client.Pipeline()
	cmds := make([]redis.Cmder, len(keys))
	for i := range keys {
		cmds[i] = queue(pipe, i)
	}
	_, failed := pipe.Exec(ctx)
	for i, cmd := range cmds {
		if err := cmd.Err(); err != nil {
			return wrap(ctx, op, keys[i], s.diagnose(ctx, err))
		}
	}
	if failed != nil {
		return wrap(ctx, op, keys[0], s.diagnose(ctx, failed))
	}
	return nil
}

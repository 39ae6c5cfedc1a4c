package redisstore

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// scanCount is how many keys one SCAN looks at, about half a millisecond of the server's time.
	scanCount = 512
	// pauseFactor is how long DeletePrefix rests after a batch, in multiples of the time that the batch took: it uses at
	// most a fifth of the server.
	pauseFactor = 4
)

// CountPrefix implements store.Prefixed with SCAN on every master. A key that the server moves meanwhile may count twice.
func (s *Store) CountPrefix(ctx context.Context, prefix string) (int, error) {
	var count atomic.Int64
	err := s.scan(ctx, "count prefix", prefix, func(_ context.Context, _ *redis.Client, keys []string) error {
		count.Add(int64(len(keys)))
		return nil
	})
	return int(count.Load()), err
}

// DeletePrefix implements store.Prefixed with SCAN and UNLINK on every master, in batches of at most 64 keys. After each batch it
// pauses for four times what the batch took. With an error it returns how many keys it had deleted.
func (s *Store) DeletePrefix(ctx context.Context, prefix string) (int, error) {
	var deleted atomic.Int64
	err := s.scan(ctx, "delete prefix", prefix, func(ctx context.Context, c *redis.Client, keys []string) error {
		for len(keys) > 0 {
			n := min(len(keys), deleteKeys)
			start := time.Now()
			d, err := unlink(ctx, c, "delete prefix", keys[:n])
			deleted.Add(int64(d))
			if err != nil {
				return err
			}
			if err := pause(ctx, pauseFactor*time.Since(start)); err != nil {
				return err
			}
			keys = keys[n:]
		}
		return nil
	})
	return int(deleted.Load()), err
}

// scan calls fn with the keys that start with prefix, a few at a time, for every master.
func (s *Store) scan(ctx context.Context, op, prefix string, fn func(context.Context, *redis.Client, []string) error) error {
	if err := s.usable(ctx); err != nil {
		return &opError{op, prefix, err}
	}
	match := escapeGlob(prefix) + "*"
	err := s.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		for cursor := uint64(0); ; {
			keys, next, err := c.Scan(ctx, cursor, match, scanCount).Result()
			if err != nil {
				return err
			}
			if len(keys) > 0 {
				if err := fn(ctx, c, keys); err != nil {
					return err
				}
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	})
	if _, named := errors.AsType[*opError](err); err == nil || named {
		return err
	}
	return wrap(ctx, op, prefix, err)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// escapeGlob makes every character of s stand for itself in a pattern.
func escapeGlob(s string) string {
	return globEscaper.Replace(s)
}

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`)

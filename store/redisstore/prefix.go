package redisstore

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// scanCount is how many keys one SCAN of a count looks at, some half a millisecond of the server's time.
const scanCount = 512

// CountPrefix implements store.Prefixed with SCAN on every master. A key that the server moves meanwhile may count twice.
func (s *Store) CountPrefix(ctx context.Context, prefix string) (int, error) {
	var count atomic.Int64
	err := s.scan(ctx, "count prefix", prefix, func(_ context.Context, _ *redis.Client, keys []string) error {
		count.Add(int64(len(keys)))
		return nil
	})
	return int(count.Load()), err
}

// DeletePrefix implements store.Prefixed as a sweep for one prefix. With an error it returns how many keys it had deleted.
func (s *Store) DeletePrefix(ctx context.Context, prefix string) (int, error) {
	done, err := s.sweep(ctx, "delete prefix", []string{prefix}, store.Sweep{}, nil)
	return int(done.Deleted), err
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

// escapeGlob makes every character of s stand for itself in a pattern.
func escapeGlob(s string) string {
	return globEscaper.Replace(s)
}

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`)

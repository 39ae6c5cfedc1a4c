package redisstore

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

var _ store.Discarder = (*Store)(nil)

// Discard implements store.Discarder with WATCH, STRLEN, GET and UNLINK in a transaction, which the server refuses if anybody has written the key
// since. It is rare, so that four round trips do not matter; scripts would need more rights, and the server would have to digest the value.
func (s *Store) Discard(ctx context.Context, key string, maxBytes int, bad func([]byte) bool) (bool, error) {
	if err := s.usable(ctx); err != nil {
		return false, &opError{"discard", key, err}
	}
	deleted := false
	err := s.client.Watch(ctx, func(tx *redis.Tx) error {
		n, err := tx.StrLen(ctx, key).Result()
		keep := false
		if err == nil && n <= int64(maxBytes) {
			value, missing := tx.Get(ctx, key).Bytes()
			keep, err = missing == nil && !bad(value), missing
		}
		if replyCode(err) == "WRONGTYPE" {
			err = nil
		}
		if err != nil || keep {
			return err
		}
		var gone *redis.IntCmd
		if _, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
			gone = p.Unlink(ctx, key)
			return nil
		}); err == nil {
			deleted = gone.Val() > 0
		}
		return err
	}, key)
	if err == nil || errors.Is(err, redis.Nil) || errors.Is(err, redis.TxFailedErr) {
		return deleted, nil
	}
	return false, wrap(ctx, "discard", key, s.blame(ctx, key, err))
}

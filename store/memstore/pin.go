package memstore

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/store"
)

var _ store.Pinner = (*Store)(nil)

// pinned is the end of a value that has none.
var pinned = time.Unix(1<<40, 0)

// Pin implements store.Pinner. A pinned value is evicted last, and only if there is nothing else to evict.
func (s *Store) Pin(ctx context.Context, keys []string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, fmt.Errorf("memstore: pin: %w", err)
	}
	lead, gap := 0, false
	for _, k := range keys {
		e := s.live(k)
		if e == nil {
			gap = true
			continue
		}
		e.expires = pinned
		if !gap {
			lead++
		}
	}
	return lead, nil
}

// Unpin implements store.Pinner.
func (s *Store) Unpin(ctx context.Context, keys []string, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("memstore: unpin: %w", err)
	}
	if ttl <= 0 {
		return fmt.Errorf("memstore: unpin: %w: TTL %v", store.ErrInvalid, ttl)
	}
	for _, k := range keys {
		if e := s.live(k); e != nil && e.expires.Equal(pinned) {
			e.expires = s.opts.Now().Add(ttl)
		}
	}
	return nil
}

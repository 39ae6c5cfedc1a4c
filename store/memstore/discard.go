package memstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/kvtier/kvtier/store"
)

var _ store.Discarder = (*Store)(nil)

// Discard implements store.Discarder. The lock is not held while bad is asked.
func (s *Store) Discard(ctx context.Context, key string, maxBytes int, bad func([]byte) bool) (bool, error) {
	read, err := s.peek(ctx, key)
	if err != nil {
		return false, fmt.Errorf("memstore: discard %q: %w", key, err)
	}
	if read == nil || len(read.value) <= maxBytes && !bad(slices.Clone(read.value)) {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.entries[key]
	if el == nil || el.Value != read { // another value, or none
		return false, nil
	}
	s.remove(el)
	return true, nil
}

func (s *Store) peek(ctx context.Context, key string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	return s.live(key), nil
}

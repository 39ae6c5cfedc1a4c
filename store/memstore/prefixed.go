package memstore

import (
	"context"
	"fmt"
	"strings"
)

// Stats is a snapshot of a Store.
type Stats struct {
	// Entries counts values, including expired ones that nobody has asked for since.
	Entries int
	// Bytes is what they are charged, at most Options.MaxBytes.
	Bytes int64
	// Evicted counts values removed for space since New.
	Evicted int64
}

// Stats returns a snapshot. It is safe for concurrent use.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Entries: len(s.entries), Bytes: s.bytes, Evicted: s.evicted}
}

// CountPrefix implements store.Prefixed.
func (s *Store) CountPrefix(ctx context.Context, prefix string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, fmt.Errorf("memstore: count prefix %q: %w", prefix, err)
	}
	return len(s.withPrefix(prefix)), nil
}

// DeletePrefix implements store.Prefixed, in one step.
func (s *Store) DeletePrefix(ctx context.Context, prefix string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, fmt.Errorf("memstore: delete prefix %q: %w", prefix, err)
	}
	keys := s.withPrefix(prefix)
	for _, k := range keys {
		s.remove(s.entries[k])
	}
	return len(keys), nil
}

// withPrefix lists the live keys that start with prefix, without marking them as used. The caller holds mu.
func (s *Store) withPrefix(prefix string) []string {
	now := s.opts.Now()
	var keys []string
	for k, el := range s.entries {
		if strings.HasPrefix(k, prefix) && now.Before(el.Value.(*entry).expires) {
			keys = append(keys, k)
		}
	}
	return keys
}

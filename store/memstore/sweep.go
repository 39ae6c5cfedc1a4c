package memstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kvtier/kvtier/store"
)

var _ store.Sweeper = (*Store)(nil)

// Sweep implements store.Sweeper, in one step: there is nobody to make way for.
func (s *Store) Sweep(ctx context.Context, prefixes []string, from store.Sweep, progress func(store.Sweep) error) (store.Sweep, error) {
	if slices.Contains(prefixes, "") {
		return from, fmt.Errorf("memstore: sweep: %w: empty prefix", store.ErrInvalid)
	}
	s.mu.Lock()
	if err := s.usable(ctx); err != nil {
		s.mu.Unlock()
		return from, fmt.Errorf("memstore: sweep: %w", err)
	}
	if from.Nodes == 1 { // all was done when the pass was broken off
		s.mu.Unlock()
		return from, nil
	}
	var dead []string
	for _, k := range s.withPrefix("") {
		from.Scanned++
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(k, p) }) {
			dead = append(dead, k)
		}
	}
	for _, k := range dead {
		from.Bytes += int64(len(s.entries[k].Value.(*entry).value))
		s.remove(s.entries[k])
	}
	s.mu.Unlock()
	from.Deleted += int64(len(dead))
	from.Nodes = 1
	if progress != nil {
		if err := progress(from); err != nil {
			return from, err
		}
	}
	return from, nil
}

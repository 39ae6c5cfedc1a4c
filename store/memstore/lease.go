package memstore

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/store"
)

var _ store.Leaser = (*Store)(nil)

// Lease implements store.Leaser. Claims are values like others and count as such.
func (s *Store) Lease(ctx context.Context, key, note string, ttl time.Duration) (store.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.usable(ctx)
	if err == nil {
		err = store.CheckLease(key, note, ttl)
	}
	if err != nil {
		return store.Lease{}, fmt.Errorf("memstore: lease %q: %w", key, err)
	}
	now := s.opts.Now()
	if held := s.live(key); held != nil {
		return store.Lease{Note: string(held.value), Left: held.expires.Sub(now)}, nil
	}
	e := &entry{key: key, value: []byte(note), expires: now.Add(ttl)}
	if err := s.makeRoom(e); err != nil {
		return store.Lease{}, fmt.Errorf("memstore: lease %q: %w", key, err)
	}
	s.entries[e.key] = s.recent.PushFront(e)
	s.bytes += e.bytes()
	return store.Lease{Granted: true}, nil
}

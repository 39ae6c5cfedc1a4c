// Package memstore is the reference implementation of store.Store: values in the memory of one process, bounded in bytes. It
// serves tests, and single-process runs that want a remote tier without a server; it shares nothing between processes.
//
// Invariants: the bytes it accounts for never exceed Options.MaxBytes after Put returns; a value past its TTL is never seen
// again; the store shares no memory with its callers.
package memstore

import (
	"container/list"
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/kvtier/kvtier/store"
)

var (
	_ store.Store    = (*Store)(nil)
	_ store.Prefixed = (*Store)(nil)
)

// entryOverhead is what an entry is charged beyond its key and value, so that a store of many empty values is bounded too.
const entryOverhead = 128

// Options configures a Store. The zero value is a store of DefaultMaxBytes.
type Options struct {
	// MaxBytes bounds keys, values and a fixed overhead per entry. Zero means DefaultMaxBytes, negative no room at all: each Put is ErrFull.
	MaxBytes int64
	// Now is the clock that TTLs follow. Nil means time.Now.
	Now func() time.Time
	// NoEviction answers ErrFull when there is no room, as Redis does under noeviction, instead of evicting.
	NoEviction bool
}

// DefaultMaxBytes is 256 MiB.
const DefaultMaxBytes = 256 << 20

// Store keeps values in memory and evicts the least recently used when it is full. Lead, Get and Put count as uses.
// It is safe for concurrent use; one mutex guards everything, which is enough for a reference.
type Store struct {
	opts Options

	mu      sync.Mutex
	entries map[string]*list.Element // of *entry
	recent  *list.List               // front is the most recently used
	bytes   int64
	evicted int64
	closed  bool
}

type entry struct {
	key     string
	value   []byte
	expires time.Time
}

func (e *entry) bytes() int64 { return int64(len(e.key)+len(e.value)) + entryOverhead }

// New returns an empty store.
func New(o Options) *Store {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Store{opts: o, entries: make(map[string]*list.Element), recent: list.New()}
}

// Lead implements store.Store.
func (s *Store) Lead(ctx context.Context, keys []string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, fmt.Errorf("memstore: lead: %w", err)
	}
	for i, k := range keys {
		if s.live(k) == nil {
			return i, nil
		}
	}
	return len(keys), nil
}

// Get implements store.Store. The lock is not held while the caller's loop body runs.
func (s *Store) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		invalid := store.CheckGet(keys, bufs)
		for i, k := range keys {
			n, err := 0, invalid
			if err == nil {
				n, err = s.read(ctx, k, bufs[i])
			}
			if err != nil {
				err = fmt.Errorf("memstore: get %q: %w", k, err)
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

func (s *Store) read(ctx context.Context, key string, buf []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	e := s.live(key)
	if e == nil {
		return 0, store.ErrNotFound
	}
	if len(e.value) > len(buf)-store.Spare {
		return 0, store.ErrTooLarge
	}
	return copy(buf, e.value), nil
}

// Put implements store.Store, without jitter. It copies the values. With Options.NoEviction an item may be ErrFull; without, one larger
// than MaxBytes is ErrFull too.
func (s *Store) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("memstore: put: %w", err)
	}
	if key, err := store.CheckPut(items, ttl); err != nil {
		return fmt.Errorf("memstore: put %q: %w", key, err)
	}
	expires := s.opts.Now().Add(ttl)
	var failed []error
	for i, it := range items {
		e := &entry{key: it.Key, value: append([]byte(nil), it.Value...), expires: expires}
		if err := s.makeRoom(e); err != nil {
			if failed == nil {
				failed = make([]error, len(items))
			}
			failed[i] = fmt.Errorf("memstore: put %q: %w", it.Key, err)
			continue
		}
		s.entries[e.key] = s.recent.PushFront(e)
		s.bytes += e.bytes()
	}
	return store.Batch(failed)
}

// makeRoom removes what e replaces and then what was used least recently.
func (s *Store) makeRoom(e *entry) error {
	if e.bytes() > s.opts.MaxBytes {
		return store.ErrFull
	}
	free := s.opts.MaxBytes - s.bytes
	old := s.entries[e.key]
	if old != nil {
		free += old.Value.(*entry).bytes()
	}
	if s.opts.NoEviction && free < e.bytes() {
		return store.ErrFull
	}
	if old != nil {
		s.remove(old)
	}
	for s.bytes+e.bytes() > s.opts.MaxBytes {
		s.remove(s.victim())
		s.evicted++
	}
	return nil
}

// victim is what was used least recently and is not pinned, or simply least recently if everything is.
func (s *Store) victim() *list.Element {
	for el := s.recent.Back(); el != nil; el = el.Prev() {
		if !el.Value.(*entry).expires.Equal(pinned) {
			return el
		}
	}
	return s.recent.Back()
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, keys []string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, fmt.Errorf("memstore: delete: %w", err)
	}
	deleted := 0
	for _, k := range keys {
		if s.live(k) != nil {
			s.remove(s.entries[k])
			deleted++
		}
	}
	return deleted, nil
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("memstore: ping: %w", err)
	}
	return nil
}

// Close implements store.Store and frees the values.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	clear(s.entries)
	s.recent.Init()
	s.bytes = 0
	return nil
}

// usable says why an operation must not start. The caller holds mu.
func (s *Store) usable(ctx context.Context) error {
	if s.closed {
		return store.ErrClosed
	}
	return ctx.Err()
}

// live returns the entry under key, marks it as used, and drops it if it has expired. The caller holds mu.
func (s *Store) live(key string) *entry {
	el := s.entries[key]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if !s.opts.Now().Before(e.expires) {
		s.remove(el)
		return nil
	}
	s.recent.MoveToFront(el)
	return e
}

func (s *Store) remove(el *list.Element) {
	e := s.recent.Remove(el).(*entry)
	delete(s.entries, e.key)
	s.bytes -= e.bytes()
}

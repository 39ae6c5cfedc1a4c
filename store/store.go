// Package store is the contract of the remote tier: keys to opaque, immutable values.
//
// A value is written once, whole, under a name that only its content can have, so that reads from replicas, retries, hedges and
// duplicate writes are all safe. What the bytes mean is none of a store's business: it does not know codec, and everything it
// returns is hostile input to whoever decodes it. The conformance suite in storetest holds every back end and decorator to
// this text.
package store

import (
	"context"
	"errors"
	"iter"
	"time"
)

// Errors that callers act on; back ends wrap them with the operation and the key.
var (
	// ErrNotFound means that there is no value under the key: an ordinary miss.
	ErrNotFound = errors.New("store: not found")
	// ErrTooLarge means that a stored value does not fit the buffer, or that one to be put exceeds MaxValueBytes.
	ErrTooLarge = errors.New("store: value too large")
	// ErrInvalid means that the caller asked for something no store can do, such as a TTL that is not positive or a key
	// longer than MaxKeyBytes: a mistake in the program, never a fault of the store.
	ErrInvalid = errors.New("store: invalid argument")
	// ErrFull means that the store has no room and evicts nothing to make some (Redis: OOM under noeviction). Reads still work.
	ErrFull = errors.New("store: full")
	// ErrReadOnly means that the store takes no writes at present, for another reason than its size. Reads still work.
	ErrReadOnly = errors.New("store: takes no writes")
	// ErrNotValue means that what lies under the key is no value: somebody else has put it there. It is a miss that Lead counts as present,
	// so that it should be discarded (Discarder).
	ErrNotValue = errors.New("store: not a value")
	// ErrLate goes with the end of a context for which the store is not to blame: nothing had been sent by then, because the caller's
	// own side had too much under way or was still connecting, or the answer was arriving.
	ErrLate = errors.New("store: not in time")
	// ErrUnavailable means that the store was not asked, because it has failed lately.
	ErrUnavailable = errors.New("store: unavailable")
	// ErrNode goes with a fault of one node of several, which has a breaker of its own: it says nothing about the others.
	ErrNode = errors.New("store: one node of several")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("store: closed")
)

const (
	// MaxValueBytes is the largest value a store takes: from 7 MiB on, servers with jemalloc 5.3.0 lose half of
	// their throughput.
	MaxValueBytes = 7<<20 - 1
	// MaxKeyBytes is the longest key a store takes.
	MaxKeyBytes = 512
	// Spare is how much longer than the value a buffer must be: a wire protocol's terminator lands there, which
	// saves a copy.
	Spare = 2
)

// Item is a value to put. The store does not keep Value after Put returns.
type Item struct {
	Key   string
	Value []byte
}

// Store holds values. It is safe for concurrent use. Every method stops at the end of its context, and none starts a write when
// the context has ended already. An empty batch succeeds without a round trip.
type Store interface {
	// Lead counts how many of keys exist, from the first on without a gap: what follows the first missing key is not
	// counted even if it exists. It takes one round trip per node, whatever the number of keys. With an error, the number n counts what is
	// known to exist before keys[n], whose error it is: the keys behind may be asked for.
	Lead(ctx context.Context, keys []string) (int, error)

	// Get reads the value of keys[i] into bufs[i] and yields its length, in the order of keys, as values arrive. A value longer
	// than len(bufs[i])-Spare yields ErrTooLarge, a missing one ErrNotFound, one that is none ErrNotValue. Each key has its own outcome: a node
	// that is sick costs its own keys. It yields exactly len(keys) times unless the caller breaks off; the buffers are the caller's
	// again when the loop has ended, either way. Bytes of a buffer whose length was not yielded without error are undefined. If the numbers
	// of keys and buffers differ, each key yields ErrInvalid.
	Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error]

	// Put stores items, each for ttl at least and a bounded jitter at most longer; ttl must be positive. Each item has its own outcome,
	// ErrorOf(err, i): without an error it is stored; with one it may be stored or not, but never in part. A node that is sick or full costs
	// its own items. If a key occurs twice in items, either value may remain. It refuses a value longer than MaxValueBytes with ErrTooLarge, a longer key than MaxKeyBytes or a TTL that is not positive
	// with ErrInvalid, in either case before it stores anything.
	Put(ctx context.Context, items []Item, ttl time.Duration) error

	// Delete removes keys and returns how many of them existed. ErrorOf(err, i) is what became of keys[i].
	Delete(ctx context.Context, keys []string) (int, error)

	// Ping asks every node for a sign of life.
	Ping(ctx context.Context) error

	// Close releases connections. Calls made afterwards return ErrClosed.
	Close() error
}

// Prefixed is an optional power of a store: to enumerate names. It serves reclaim and inspection, never a request.
type Prefixed interface {
	// CountPrefix counts the keys that start with prefix. Under concurrent writes the number is approximate.
	CountPrefix(ctx context.Context, prefix string) (int, error)
	// DeletePrefix deletes the keys that start with prefix, in small batches with pauses between them so that foreground
	// traffic keeps its latency, and returns how many it deleted. Keys written meanwhile may survive.
	DeletePrefix(ctx context.Context, prefix string) (int, error)
}

// Sweeper is an optional power of a store: to delete the keys of many prefixes in one pass over all names, instead of one pass each.
type Sweeper interface {
	// Sweep deletes the keys that start with any of prefixes, at a pace that leaves foreground traffic its latency: small batches, and
	// long pauses after each. It calls progress, if not nil, now and then and once at the end, from one goroutine at a time; an error
	// from it ends the pass with that error. An empty prefix is ErrInvalid: it would delete everything.
	//
	// from is where to begin: the zero Sweep, or the result of a pass over the same prefixes that ended with an error, which is
	// then resumed where it was. The result counts from the beginning. Keys written meanwhile may survive.
	Sweep(ctx context.Context, prefixes []string, from Sweep, progress func(Sweep) error) (Sweep, error)
}

// Sweep is how far a pass over the names has come. It is a value: nobody changes one that was handed out.
type Sweep struct {
	Scanned int64 // names looked at, roughly
	Deleted int64 // keys deleted
	Bytes   int64 // size of their values
	Nodes   int   // nodes of the store that are done
	// Cursors is where each node's part of the pass stands, by the name of its server process; it means something to the store only.
	Cursors map[string]uint64
}

// Discarder is an optional power of a store: to delete a value that is no good, unless another has taken its place meanwhile.
type Discarder interface {
	// Discard reads what is under key and deletes exactly that if bad says so, or if it is no value, or longer than maxBytes, in which two
	// cases bad is not asked. It reports whether it deleted something. bad may look at value until it returns.
	Discard(ctx context.Context, key string, maxBytes int, bad func(value []byte) bool) (bool, error)
}

// Pinner is an optional power of a store: to keep values beyond every TTL. What has no TTL is left alone by servers that evict volatile keys
// only; a value that is put again is not pinned any more.
type Pinner interface {
	// Pin takes the TTL off the values of keys, and counts, from the first on without a gap, how many exist.
	Pin(ctx context.Context, keys []string) (int, error)
	// Unpin gives those of keys that have no TTL one of ttl, which must be positive.
	Unpin(ctx context.Context, keys []string, ttl time.Duration) error
}

// As returns the first store in the stack of decorators around s that has the power T. Decorators that pass a power on
// implement Unwrap() Store.
func As[T any](s Store) (T, bool) {
	for s != nil {
		if t, ok := s.(T); ok {
			return t, true
		}
		u, ok := s.(interface{ Unwrap() Store })
		if !ok {
			break
		}
		s = u.Unwrap()
	}
	var none T
	return none, false
}

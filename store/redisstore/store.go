package redisstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

var (
	_ store.Store    = (*Store)(nil)
	_ store.Prefixed = (*Store)(nil)
)

// Store keeps values in Redis or Valkey. It is safe for concurrent use.
type Store struct {
	opts     Options
	client   redis.UniversalClient
	nodes    *nodes  // of a cluster, or if reads are hedged
	hedge    *hedger // nil if reads are not hedged
	lanes    lanes
	batches  sync.Pool // of *batch
	probes   sync.Pool // of *probe
	front    *front    // of the only server, if there is no more to know
	warming  warmer
	asked    backgrounds // questions
	closed   atomic.Bool
	answered atomic.Bool // a call has succeeded
}

// Open returns a store for the servers that o names. It does not wait for them: connections are opened in the background, and a server that
// is down shows in the first call, so that a worker can start without its remote tier; call Check for an opinion on the servers. It
// returns all problems of o joined.
func Open(o Options) (*Store, error) {
	o, err := o.resolve()
	if err != nil {
		return nil, err
	}
	s := &Store{opts: o}
	s.warming.init()
	s.front = &front{life: s.warming.life}
	g := s.front.guard
	if o.Mode == Cluster || o.Hedge > 0 {
		s.nodes = newNodes(s.warming.life, o.NodeBreaker)
		s.front, g = nil, s.nodes.guard
	}
	s.client = o.connect(g, false)
	s.lanes.init(s.client, o.MaxInFlightBytes, o.PoolSize)
	if s.nodes != nil {
		s.nodes.cluster = s.lanes.cluster
	}
	if o.Hedge > 0 {
		s.hedge = newHedger(o, g, s.lanes.cluster)
	}
	s.warm()
	return s, nil
}

// OpenURL is Open with the URL u and otherwise the defaults.
func OpenURL(u string) (*Store, error) { return Open(Options{URL: u}) }

// deleteKeys is how many keys one pipeline removes at most: freeing values is the server's main thread's work.
const deleteKeys = 64

// Delete implements store.Store with UNLINK, in pipelines of at most 64 keys. After a fault that is not one node's it sends no more.
func (s *Store) Delete(ctx context.Context, keys []string) (int, error) {
	var errs []error
	deleted, failed := 0, error(nil)
	for from := 0; from < len(keys); from += deleteKeys {
		chunk := keys[from:min(len(keys), from+deleteKeys)]
		d, err := 0, failed
		if failed == nil {
			if err = s.usable(ctx); err != nil {
				err = &opError{"delete", chunk[0], err}
			} else {
				d, err = unlink(ctx, s.client, "delete", chunk, s.blame)
			}
		}
		deleted += d
		if err == nil {
			continue
		}
		if errs == nil {
			errs = make([]error, len(keys))
		}
		for i := range chunk {
			if errs[from+i] = store.ErrorOf(err, i); errs[from+i] != nil && !errors.Is(errs[from+i], store.ErrNode) {
				failed = errs[from+i]
			}
		}
	}
	return deleted, store.Batch(errs)
}

// unlink removes keys in one pipeline and counts those that existed, even if some commands fail. The error tells of each key.
func unlink(ctx context.Context, c redis.Cmdable, op string, keys []string, blame func(context.Context, string, error) error) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, &opError{op, keys[0], err}
	}
	pipe := c.Pipeline()
	for _, k := range keys {
		pipe.Unlink(ctx, k)
	}
	cmds, _ := pipe.Exec(ctx)
	deleted := 0
	var errs []error
	for i, cmd := range cmds {
		n, err := cmd.(*redis.IntCmd).Result()
		deleted += int(n)
		if err != nil {
			if errs == nil {
				errs = make([]error, len(keys))
			}
			errs[i] = wrap(ctx, op, keys[i], blame(ctx, keys[i], err))
		}
	}
	return deleted, store.Batch(errs)
}

// Ping implements store.Store: every master answers PING.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return &opError{"ping", "", err}
	}
	err := s.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return c.Ping(ctx).Err() })
	if err != nil {
		return wrap(ctx, "ping", "", s.diagnose(ctx, err))
	}
	s.heard()
	return nil
}

// Close implements store.Store. Calls in flight may fail.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.nodes != nil {
		defer s.nodes.stop()()
	}
	defer s.asked.close()
	defer s.warming.close()
	s.warming.stop()
	err := s.client.Close()
	if s.hedge != nil {
		err = errors.Join(err, s.hedge.close())
	}
	if err != nil {
		return &opError{"close", "", err}
	}
	return nil
}

// usable says why an operation must not start.
func (s *Store) usable(ctx context.Context) error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrLate, err)
	}
	return nil
}

// eachMaster calls fn for every server that holds keys, several at a time in a cluster.
func (s *Store) eachMaster(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, fn)
	case *redis.Client:
		return fn(ctx, c)
	default:
		return fmt.Errorf("redisstore: %T is no client that holds keys", c) // connect makes no other
	}
}

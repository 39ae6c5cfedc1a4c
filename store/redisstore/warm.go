package redisstore

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// warmTime bounds one warming, in which a connection takes up to five round trips.
const warmTime = 10 * time.Second

// warmer opens connections in the background before anybody needs them: when the store is opened, and when its server is well again. They are
// kept. A server that is down is left to the first call.
type warmer struct {
	life context.Context
	stop context.CancelFunc
	mu   struct {
		sync.Mutex
		running, closed bool
	}
	wg sync.WaitGroup
}

func (w *warmer) init() { w.life, w.stop = context.WithCancel(context.Background()) }

// close ends what is under way and waits for it.
func (w *warmer) close() {
	w.mu.Lock()
	w.mu.closed = true
	w.mu.Unlock()
	w.stop()
	w.wg.Wait()
}

// run calls warm unless that is being done already.
func (w *warmer) run(warm func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.running || w.mu.closed {
		return
	}
	w.mu.running = true
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(w.life, warmTime)
		defer cancel()
		warm(ctx)
		w.mu.Lock()
		w.mu.running = false
		w.mu.Unlock()
	})
}

// backgrounds are what may outlive the call that began it, but not the store. The zero value is ready.
type backgrounds struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // grows under mu while not closed
}

// begin runs f in the background, and reports false if the store is closed.
func (b *backgrounds) begin(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.wg.Go(f)
	}
	return !b.closed
}

// close waits for what is under way.
func (b *backgrounds) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
}

// warm opens all connections to every master.
func (s *Store) warm() {
	s.warming.run(func(ctx context.Context) {
		// It passes the breakers of nodes without being counted: nobody asked for it.
		_ = s.eachMaster(context.WithValue(ctx, inGuard{}, true), func(ctx context.Context, c *redis.Client) error {
			var all sync.WaitGroup
			for range s.opts.PoolSize { // those that begin before the first has come back get a connection each
				all.Go(func() { _ = c.Ping(ctx).Err() })
			}
			all.Wait()
			return nil
		})
	})
}

package tiered

import (
	"sync"

	"github.com/kvtier/kvtier/block"
)

// fill is one block on its way from the remote tier. The first request that misses it has it fetched, all others wait for the same one.
//
//	joined (waiters ≥ 1) → finished with a block → last waiter leaves: block released
//	joined               → finished with a reason
//	all waiters left before the end → finished: block released at once (it is hot by then)
//
// The key holds the generation: a request that began after a change never waits for a fill that began before it.
type fill struct {
	key     flightKey
	scope   scope
	depth   int           // blocks before it in its chain
	parent  block.Hash    // the last of them
	done    chan struct{} // closed once block or reason is set
	block   *entry        // with one reference for all waiters together
	reason  Reason
	waiters int  // guarded by flights.mu
	passing bool // all of them leave the hot tier as it is; guarded by flights.mu
}

type flightKey struct {
	gen  Generation
	hash block.Hash
}

// shared is under what a fill is found by those who join it.
func (k flightKey) shared() flightKey {
	if sharedFlights() {
		k.gen = Generation{}
	}
	return k
}

type flights struct {
	mu sync.Mutex
	m  map[flightKey]*fill
}

// join appends to r's fills one for each of the next n blocks, and returns those among them that the caller has to fetch. It stops early when
// the bytes allowed to be under way are used up: waiting for them could wait for a request that waits for us.
func (c *Cache) join(r *reading, n int) (mine []*fill) {
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	size := int64(c.slabs.bytes)
	for range n {
		i := r.block(len(r.fills))
		key := flightKey{r.scope.gen, r.chain[i]}
		f, ok := c.flights.m[key.shared()]
		if !ok {
			if c.stats.filling.Load()+size > c.opts.FillBytes {
				return mine
			}
			c.stats.filling.Add(size)
			f = &fill{key: key, scope: r.scope, parent: parentOf(r.chain, i), depth: i, done: make(chan struct{}), passing: true}
			c.flights.m[key.shared()] = f
			mine = append(mine, f)
		}
		f.waiters++
		f.passing = f.passing && r.passing
		r.fills = append(r.fills, f)
	}
	return mine
}

// finish publishes the end of f. e is nil for a miss; else finish takes over one reference.
func (c *Cache) finish(f *fill, e *entry, why Reason) {
	c.flights.mu.Lock()
	f.block, f.reason = e, why
	delete(c.flights.m, f.key.shared())
	idle := f.waiters == 0
	close(f.done)
	c.flights.mu.Unlock()
	if e == nil || idle {
		c.retire(f)
	}
}

// hotFill reports whether f's block is to become hot.
func (c *Cache) hotFill(f *fill) bool {
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	return !f.passing
}

// leave ends the caller's interest in f. The block must not be touched afterwards.
func (c *Cache) leave(f *fill) {
	c.flights.mu.Lock()
	f.waiters--
	last := false
	if f.waiters == 0 {
		select {
		case <-f.done:
			last = f.block != nil
		default: // finish will see that nobody waits
		}
	}
	c.flights.mu.Unlock()
	if last {
		c.retire(f)
	}
}

func (c *Cache) retire(f *fill) {
	c.stats.filling.Add(-int64(c.slabs.bytes))
	if f.block != nil {
		f.block.release()
	}
}

// unwanted ends fills that nobody waits for, if that is all of them: what a request has computed meanwhile need not be fetched.
func (c *Cache) unwanted(fills []*fill) bool {
	c.flights.mu.Lock()
	for _, f := range fills {
		if f.waiters > 0 {
			c.flights.mu.Unlock()
			return false
		}
	}
	for _, f := range fills {
		f.reason = MissGate
		delete(c.flights.m, f.key.shared())
		close(f.done)
	}
	c.flights.mu.Unlock()
	for _, f := range fills {
		c.retire(f)
	}
	return true
}

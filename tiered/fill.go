package tiered

import (
	"sync"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// fill is one block on its way from the remote tier. The first request that misses it leads, all others wait for the same one.
//
//	joined (waiters ≥ 1) → finished with a block → last waiter leaves: block released
//	joined               → finished with a reason
//	all waiters left before the end → finished: block released at once (it is hot by then)
//
// The key holds the generation: a request that began after a change never waits for a fill that began before it.
type fill struct {
	key     flightKey
	depth   int
	ns      block.Digest
	cut     block.Cut
	done    chan struct{} // closed once block or reason is set
	block   *entry        // with one reference for all waiters together
	reason  Reason
	waiters int // guarded by flights.mu
}

type flightKey struct {
	gen  Generation
	hash block.Hash
}

// shared is under what a fill is found by those who join it.
func (k flightKey) shared() flightKey {
	if mutation.Is(mutation.FlightWithoutGen) {
		k.gen = Generation{}
	}
	return k
}

type flights struct {
	mu sync.Mutex
	m  map[flightKey]*fill
}

// join appends to all a fill for each of hashes, and returns those among them that the caller has to lead. depth is that of the first; step,
// 1 or -1, is from one to the next. It stops early when the bytes allowed to be under way are used up: waiting for them could wait for a
// request that waits for us.
func (c *Cache) join(all []*fill, g Generation, ns block.Digest, cut block.Cut, hashes []block.Hash, depth, step int) (joined, mine []*fill) {
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	size := int64(c.slabs.bytes)
	for i, h := range hashes {
		key := flightKey{g, h}
		f, ok := c.flights.m[key.shared()]
		if !ok {
			if c.stats.filling.Load()+size > c.opts.FillBytes {
				return all, mine
			}
			c.stats.filling.Add(size)
			f = &fill{key: key, depth: depth + i*step, ns: ns, cut: cut, done: make(chan struct{})}
			c.flights.m[key.shared()] = f
			mine = append(mine, f)
		}
		f.waiters++
		all = append(all, f)
	}
	return all, mine
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

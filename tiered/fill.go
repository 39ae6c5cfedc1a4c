package tiered

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/store"
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

// join appends to all a fill for each of hashes, and returns those among them that the caller has to lead. It stops early when the bytes
// allowed to be under way are used up: waiting for them could wait for a request that waits for us.
func (c *Cache) join(all []*fill, g Generation, ns block.Digest, cut block.Cut, hashes []block.Hash, depth int) (joined, mine []*fill) {
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
			f = &fill{key: key, depth: depth + i, ns: ns, cut: cut, done: make(chan struct{})}
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

// lead fetches fills, which are consecutive in their chain but for blocks that others fetch, and finishes each of them. It runs under its
// own deadline: whoever waits may leave at any time.
func (c *Cache) lead(fills []*fill, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(c.ctx, timeout)
	defer cancel()
	parts := c.format.Layout().PartCount()
	entries := make([]*entry, len(fills))
	keys := make([]string, 0, len(fills)*parts)
	bufs := make([][]byte, 0, len(fills)*parts)
	for i, f := range fills {
		e := c.slabs.get(f.key.gen, f.ns, f.cut, f.key.hash, f.depth)
		e.share.Store(c.spill.sharedNow())
		entries[i] = e
		for p := range parts {
			keys = append(keys, e.key(p))
		}
		bufs = append(bufs, e.frames...)
	}
	scratch := c.scratches.Get().(*codec.Scratch)
	defer c.scratches.Put(scratch)
	at, got := 0, 0 // block and parts of it that have arrived
	var failed error
	for n, err := range c.remote.Get(ctx, keys, bufs) {
		e := entries[at]
		if err == nil {
			e.frames[got], e.places[got], err = c.format.OpenAny(e.frames[got], n, e.header(got), scratch)
		}
		if err != nil && mutation.Is(mutation.PublishPartial) {
			l := c.format.Layout()
			e.frames[got] = e.frames[got][:c.format.FrameBytes(l.Part(got))]
			e.places[got], err = c.format.Payload(e.frames[got]), nil
		}
		if err != nil {
			failed = err
			break
		}
		if got++; got == parts {
			c.commit(fills[at], e)
			at, got = at+1, 0
		}
	}
	if at == len(fills) {
		return
	}
	if failed == nil {
		failed = context.DeadlineExceeded // a store that yields too little is out of contract; treat it as out of time
	}
	// Before anybody is told: who computes the block anew must not have its fresh value deleted.
	c.discardBad(fills[at], failed)
	for i := at; i < len(fills); i++ {
		entries[i].release()
		c.finish(fills[i], nil, reasonOf(failed))
	}
}

// commit makes a fetched block hot and hands it to whoever waits. insert compares the generation under the lock that a change of generation
// takes, so a fill that was under way across a change leaves nothing behind; waiters compare once more before they use it.
func (c *Cache) commit(f *fill, e *entry) {
	c.admit(e)
	if !c.allows(&f.key.gen, f.ns, f.cut, AccessHot) && !mutation.Is(mutation.FlightWithoutGen) && !mutation.Is(mutation.LateInsert) {
		e.release()
		c.finish(f, nil, MissStale)
		return
	}
	c.finish(f, e, MissNone)
}

// discardBad removes a value that failed its checks, so that it is computed and stored anew instead of failing for everybody. Values of
// another format version are left alone: two releases running side by side would delete each other's.
func (c *Cache) discardBad(f *fill, why error) {
	if !errors.Is(why, codec.ErrCorrupt) && !errors.Is(why, codec.ErrForeign) && !errors.Is(why, store.ErrTooLarge) {
		return
	}
	c.stats.badValues.Add(1)
	c.opts.Logger.Warn("bad value deleted", "block", f.key.hash, "err", why)
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.ProbeTimeout)
	defer cancel()
	variant := f.key.gen.Identity.Variant()
	keys := make([]string, c.format.Layout().PartCount())
	for p := range keys {
		keys[p] = block.Key(variant, f.key.gen.Epoch, f.key.hash, p)
	}
	_, _ = c.remote.Delete(ctx, keys) // best effort: it stays a miss either way
}

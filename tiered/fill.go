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

// lead fetches fills in their order and finishes each of them, asking for group of them at a time: all at once keep the wire full, fewer
// arrive one by one on a slow one. It runs under its own deadline, whoever waits may leave at any time. It returns how many bytes took how long.
func (c *Cache) lead(fills []*fill, group int) (bytes int, took time.Duration) {
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.FetchTimeout)
	defer cancel()
	scratch := c.scratches.Get().(*codec.Scratch)
	defer c.scratches.Put(scratch)
	start := c.now()
	for len(fills) > 0 {
		n := min(group, len(fills))
		done, got, err := c.read(ctx, fills[:n], scratch)
		bytes += got
		if err != nil {
			if reasonOf(err) == MissDeadline {
				bytes = max(bytes, c.format.Layout().BlockBytes()) // it would have taken longer still
			}
			c.fail(fills[done:], err)
			break
		}
		if fills = fills[n:]; c.unwanted(fills) {
			break
		}
	}
	return bytes, c.now().Sub(start)
}

// read fetches fills in one batch and commits them as they arrive. It returns how many arrived, the bytes, and why it stopped; without an
// error all are finished, those that did not arrive because nobody wants them any more.
func (c *Cache) read(ctx context.Context, fills []*fill, scratch *codec.Scratch) (at, bytes int, failed error) {
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
	got := 0 // parts of the block that is arriving
	for n, err := range c.remote.Get(ctx, keys, bufs) {
		e := entries[at]
		if err == nil {
			bytes += n
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
			if at < len(fills) && c.unwanted(fills[at:]) {
				break
			}
		}
	}
	for _, e := range entries[at:] { // not before the loop has ended: until then the store may write into them
		e.release()
	}
	if at < len(fills) && failed == nil {
		select {
		case <-fills[at].done:
		default:
			failed = context.DeadlineExceeded // a store that yields too little is out of contract; treat it as out of time
		}
	}
	return at, bytes, failed
}

// fail finishes fills that were not fetched, the first of them because of err.
func (c *Cache) fail(fills []*fill, err error) {
	// Before anybody is told: who computes the block anew must not have its fresh value deleted.
	c.discardBad(fills[0], err)
	why := reasonOf(err)
	if why == MissCold {
		why = MissEvicted // it was there when the store was asked
	}
	for _, f := range fills {
		c.finish(f, nil, why)
	}
}

// commit makes a fetched block hot and hands it to whoever waits. insert compares the generation under the lock that a change of generation
// takes, so a fill that was under way across a change leaves nothing behind; waiters compare once more before they use it.
func (c *Cache) commit(f *fill, e *entry) {
	c.admit(e)
	if !c.allows(&f.key.gen, f.ns, f.cut, AccessHot) && !mutation.Is(mutation.FlightWithoutGen) && !mutation.Is(mutation.LateInsert) {
		e.release()
		c.finish(f, nil, c.lost(&f.key.gen, f.ns, f.cut))
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

package tiered

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/store"
)

// fetch gets fills in their order and finishes each of them, asking for group of them at a time: all at once keep the wire full, fewer
// arrive one by one on a slow one. It runs under its own deadline, whoever waits may leave at any time. It returns how many bytes took how
// long, from the first question to the last arrival. It gives up after Options.FetchTimeout, or at until if that is later.
func (c *Cache) fetch(fills []*fill, group int, until time.Time) (bytes int, took time.Duration) {
	if len(fills) == 0 {
		return 0, 0
	}
	start := c.now()
	ctx, cancel := context.WithTimeout(c.ctx, max(c.opts.FetchTimeout, until.Sub(start)))
	defer cancel()
	f := fetching{Cache: c, rest: fills, group: group, start: start}
	var second sync.WaitGroup
	if group < len(fills) && c.opts.Steps == nil {
		second.Go(func() { f.run(ctx) }) // the wire is not to idle while the next group is asked for
	}
	f.run(ctx)
	second.Wait()
	return f.bytes, f.took
}

// fetching is the state of a fetch. Two goroutines take groups from it in turn.
type fetching struct {
	*Cache
	group int
	start time.Time

	mu    sync.Mutex
	rest  []*fill // not asked for yet
	bytes int
	took  time.Duration // until the last arrival
}

func (f *fetching) run(ctx context.Context) {
	scratch := f.scratches.Get().(*codec.Scratch)
	defer f.scratches.Put(scratch)
	for {
		group := f.next()
		if len(group) == 0 {
			return
		}
		if !f.allows(&group[0].scope, AccessShared) { // they are of one request
			why := f.lost(&group[0].scope)
			for _, rest := range append(group, f.stop()...) {
				f.finish(rest, nil, why)
			}
			return
		}
		if err := f.get(ctx, group, scratch, f.arrived); err != nil {
			if reasonOf(err) == MissDeadline {
				f.late()
			}
			for _, rest := range f.stop() {
				f.fail(rest, err)
			}
			return
		}
	}
}

// next takes the next group, unless nobody wants what is left.
func (f *fetching) next() []*fill {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.rest) == 0 {
		return nil
	}
	if f.unwanted(f.rest) {
		f.rest = nil
		return nil
	}
	n := min(f.group, len(f.rest))
	group := f.rest[:n:n]
	f.rest = f.rest[n:]
	return group
}

// stop takes all that is left.
func (f *fetching) stop() []*fill {
	f.mu.Lock()
	defer f.mu.Unlock()
	rest := f.rest
	f.rest = nil
	return rest
}

func (f *fetching) arrived(bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes += bytes
	f.took = f.now().Sub(f.start)
}

// late takes the time that was waited in vain for that of a block at least: it would have taken longer still.
func (f *fetching) late() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes = max(f.bytes, f.format.Layout().BlockBytes())
	f.took = f.now().Sub(f.start)
}

// get fetches fills in one batch and finishes them as they arrive, each part with its size. A block that is missing or bad ends alone. It
// returns the first error that says the remote tier is sick; all fills are finished either way, unless nobody wants them any more.
func (c *Cache) get(ctx context.Context, fills []*fill, scratch *codec.Scratch, arrived func(bytes int)) (sick error) {
	parts := c.format.Layout().PartCount()
	entries := make([]*entry, len(fills))
	hashes := make([]block.Hash, len(fills))
	bufs := make([][]byte, 0, len(fills)*parts)
	for i, f := range fills {
		e := c.slabs.get(f.scope, f.key.hash, f.parent, f.depth)
		e.share.Store(c.sharedNow())
		entries[i], hashes[i] = e, f.key.hash
		bufs = append(bufs, e.frames...)
	}
	keys := c.keys(&fills[0].key.gen, hashes) // a batch is of one request, thus of one generation
	at := 0
	var bad error      // what is wrong with the block that is arriving
	var wrong []func() // ends the fills whose values are to be deleted: not while the store is still reading
	for n, err := range c.remote.Get(ctx, keys, bufs) {
		i, p := at/parts, at%parts
		at++
		e := entries[i]
		if err == nil {
			arrived(n)
			e.frames[p], e.places[p], err = c.format.OpenAny(e.frames[p], n, e.header(p), scratch)
		}
		if err != nil && publishPartial() {
			l := c.format.Layout()
			e.frames[p] = e.frames[p][:c.format.FrameBytes(l.Part(p))]
			e.places[p], err = c.format.Payload(e.frames[p]), nil
		}
		if bad == nil {
			bad = err
		}
		if p < parts-1 {
			continue
		}
		if bad == nil {
			c.commit(fills[i], e)
			entries[i] = nil
		} else {
			if sick == nil && reasonOf(bad).Degraded() && !errors.Is(bad, store.ErrNode) { // other nodes have other blocks
				sick = bad
			}
			if err := bad; discards(err) {
				wrong = append(wrong, func() { c.fail(fills[i], err) })
			} else {
				c.fail(fills[i], err)
			}
			bad = nil
		}
		if i+1 < len(fills) && c.unwanted(fills[i+1:]) {
			at = len(keys)
			break
		}
	}
	for _, e := range entries { // not before the loop has ended: until then the store may write into them
		if e != nil {
			e.release()
		}
	}
	for _, end := range wrong {
		end()
	}
	if at < len(keys) { // a store that yields too little is out of contract; treat it as out of time
		sick = context.DeadlineExceeded
		for _, f := range fills[at/parts:] {
			c.fail(f, sick)
		}
	}
	return sick
}

// fail finishes a fill that was not fetched because of err.
func (c *Cache) fail(f *fill, err error) {
	// Before anybody is told: who computes the block anew must not have its fresh value deleted.
	c.discardBad(f, err)
	why := reasonOf(err)
	if why == MissCold {
		why = MissEvicted // it was there when the store was asked
	}
	c.finish(f, nil, why)
}

// commit makes a fetched block hot and hands it to whoever waits. insert compares the generation under the lock that a change of generation
// takes, so a fill that was under way across a change leaves nothing behind; waiters compare once more before they use it.
func (c *Cache) commit(f *fill, e *entry) {
	if c.hotFill(f) {
		c.admit(e, true)
	}
	if !c.allows(&f.scope, AccessHot) && !commitUnchecked() {
		e.release()
		c.finish(f, nil, c.lost(&f.scope))
		return
	}
	c.finish(f, e, MissNone)
}

// discardBad removes a value that failed its checks, so that it is computed and stored anew instead of failing for everybody. Values of
// another format version are left alone: two releases running side by side would delete each other's.
func (c *Cache) discardBad(f *fill, why error) {
	switch {
	case !discards(why):
		return
	case reasonOf(why) == MissEpoch: // a late write, as after a purge: nothing is wrong with it
		c.opts.Logger.Debug("value of an ended epoch", "block", f.key.hash, "err", why)
	default:
		c.stats.badValues.Add(1)
		c.opts.Logger.Warn("bad value", "block", f.key.hash, "err", why)
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.ProbeTimeout)
	defer cancel()
	keys := c.keys(&f.key.gen, []block.Hash{f.key.hash})
	d, ok := store.As[store.Discarder](c.remote)
	if !ok {
		_, _ = c.remote.Delete(ctx, keys) // best effort: it stays a miss either way
		return
	}
	// Another worker may have stored a good one meanwhile: what goes is what is still bad.
	e := c.slabs.get(f.scope, f.key.hash, f.parent, f.depth)
	defer e.release()
	scratch := c.scratches.Get().(*codec.Scratch)
	defer c.scratches.Put(scratch)
	for p, key := range keys {
		_, _ = d.Discard(ctx, key, len(e.frames[p])-store.Spare, func(value []byte) bool {
			_, _, err := c.format.OpenAny(e.frames[p], copy(e.frames[p], value), e.header(p), scratch)
			return discards(err)
		})
	}
}

func discards(err error) bool {
	return errors.Is(err, codec.ErrCorrupt) || errors.Is(err, codec.ErrForeign) || errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrNotValue)
}

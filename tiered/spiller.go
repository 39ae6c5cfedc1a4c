package tiered

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/store"
)

const (
	spillBatchBytes = 16 << 20 // several of the store's pipelines, so that the wire does not idle between batches
	spillPauseMin   = 50 * time.Millisecond
	spillPauseMax   = 5 * time.Second
	spillProbes     = 4 // round trips at once to learn what the remote tier has of a batch
)

// offer hands e, which comes after before, to the storer if its chain can be complete there.
func (c *Cache) offer(e *entry, before block.Hash) bool {
	if e.depth > 0 && !c.spill.has(&e.gen, before) {
		// Not hot means not known: the storer asks. Hot and not shared means that it was dropped, or never offered.
		if p := c.hot.peek(&e.gen, before); p != nil && p.share.Load() == unshared {
			c.stats.spillDrops[dropIncomplete].Add(1)
			return false
		}
	}
	return c.spill.offer(e, before)
}

// offerRun hands over what an outage, a full queue or the policy kept from being stored, and what the remote tier is known to have lost: run
// follows before in its chain.
func (c *Cache) offerRun(before block.Hash, run []*entry) {
	known := c.spill.sharedNow()
	for _, e := range run {
		if e.share.Load() != known && !c.spill.offer(e, before) {
			return
		}
		before = e.hash
	}
}

// offerEvicted hands over a block that leaves the hot tier, behind those before it in its chain that have not been stored: the last blocks
// of a chain leave first.
func (c *Cache) offerEvicted(e *entry) {
	known := c.spill.sharedNow()
	if e.share.Load() >= known {
		return
	}
	chain := c.hot.ancestors(e, func(p *entry) bool { return p.share.Load() != known })
	whole := true
	for _, p := range slices.Backward(chain) {
		whole = whole && c.spill.offer(p, p.parent)
		p.release()
	}
	if whole {
		c.spill.offer(e, e.parent)
	} else {
		c.stats.spillDrops[dropIncomplete].Add(1)
	}
}

// spillLoop stores queued blocks until the cache is closed. While the remote tier is sick or full it waits, longer each time, and the
// bounded queue decides what is given up. After a failure it tries a single block, then twice as much each time: a link on which a whole
// batch takes longer than Options.SpillTimeout would never get anything through.
func (c *Cache) spillLoop() {
	pause, limit := time.Duration(0), int64(spillBatchBytes)
	for {
		n, err := c.spillOnce(limit)
		switch {
		case err != nil:
			if pause == 0 {
				c.opts.Logger.Warn("spilling paused", "err", err)
			}
			pause, limit = min(max(2*pause, spillPauseMin), spillPauseMax), 1
			select {
			case <-time.After(pause):
			case <-c.ctx.Done():
				return
			}
		case n > 0:
			if pause > 0 {
				c.opts.Logger.Info("spilling resumed")
			}
			pause, limit = 0, min(2*max(limit, n), spillBatchBytes)
		default:
			select {
			case <-c.spill.wake:
			case <-c.ctx.Done():
				return
			}
		}
	}
}

// errNotShared pauses spilling while there is no lease; the queue keeps what it can.
var errNotShared = errors.New("tiered: no lease on the epoch")

// spillOnce stores up to maxBytes of what is queued, and returns how many bytes of blocks have left the queue for good.
func (c *Cache) spillOnce(maxBytes int64) (n int64, err error) {
	batch := c.spill.take(maxBytes, c.View())
	if len(batch) == 0 {
		return 0, nil
	}
	c.doubt()
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.SpillTimeout)
	defer cancel()
	missing, had, incomplete, err := c.sift(ctx, batch)
	if err == nil && len(missing) > 0 {
		err = c.store(ctx, missing)
	}
	if err != nil {
		c.spill.retry(batch)
		return 0, err
	}
	for _, it := range batch {
		n += it.cost()
	}
	c.spill.done(missing, had, incomplete)
	return n, nil
}

// run is blocks of a batch that follow each other in one chain.
type run struct {
	items  []*spillItem
	parent bool // the block before items[0] has to be there already
	had    int  // blocks that the remote tier has, the one before them included
}

// sift asks the remote tier what of batch it has, so that nothing is stored twice, as when a block was computed because fetching it took too
// long or because another worker was as quick, and nothing behind a gap.
func (c *Cache) sift(ctx context.Context, batch []*spillItem) (missing, had, incomplete []*spillItem, err error) {
	runs := c.runs(batch)
	if err := c.probeRuns(ctx, runs); err != nil {
		return nil, nil, nil, err
	}
	gone := map[block.Hash]bool{} // blocks of this batch that will not be there
	for _, r := range runs {
		n := r.had
		if r.parent {
			if n == 0 {
				c.missed(r.items[0])
				incomplete = append(incomplete, r.items...)
				for _, it := range r.items {
					gone[it.hash] = true
				}
				continue
			}
			n--
		} else if gone[r.items[0].before] {
			incomplete = append(incomplete, r.items...)
			for _, it := range r.items {
				gone[it.hash] = true
			}
			continue
		}
		had = append(had, r.items[:n]...)
		missing = append(missing, r.items[n:]...)
	}
	return missing, had, incomplete, nil
}

func (c *Cache) runs(batch []*spillItem) (runs []*run) {
	in := make(map[block.Hash]bool, len(batch))
	var last *spillItem
	for _, it := range batch {
		if last != nil && it.depth == last.depth+1 && it.before == last.hash {
			runs[len(runs)-1].items = append(runs[len(runs)-1].items, it)
		} else {
			runs = append(runs, &run{items: []*spillItem{it}, parent: it.depth > 0 && !in[it.before]})
		}
		in[it.hash] = true
		last = it
	}
	return runs
}

func (c *Cache) probeRuns(ctx context.Context, runs []*run) error {
	if c.opts.Steps != nil {
		for _, r := range runs {
			if err := c.probeRun(ctx, r); err != nil {
				return err
			}
		}
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(spillProbes)
	for _, r := range runs {
		g.Go(func() error { return c.probeRun(ctx, r) })
	}
	return g.Wait()
}

func (c *Cache) probeRun(ctx context.Context, r *run) error {
	parts := c.format.Layout().PartCount()
	keys := make([]string, 0, (len(r.items)+1)*parts)
	first := r.items[0]
	if r.parent {
		for p := range parts {
			keys = append(keys, block.Key(first.gen.Identity.Variant(), first.gen.Epoch, first.before, p))
		}
	}
	for _, it := range r.items {
		for p := range parts {
			keys = append(keys, it.key(p))
		}
	}
	if c.View().Access != AccessShared {
		return errNotShared
	}
	n, err := c.remote.Lead(ctx, keys)
	r.had = n / parts
	return err
}

// doubt ends this worker's belief in what was stored long ago: values expire, and what is hot here for longer has to be stored again.
func (c *Cache) doubt() {
	if now := c.now(); now.Sub(c.spill.trusted) > c.opts.TTL/2 {
		if !c.spill.trusted.IsZero() {
			c.spill.losses.Add(1)
		}
		c.spill.trusted = now
	}
}

// missed takes note that the block before it, which should be in the remote tier, is not. If this worker believed that, the tier has lost it,
// flushed, evicted or expired, and perhaps others: all are in doubt, and offered again when they are next used.
func (c *Cache) missed(it *spillItem) {
	if p := c.hot.peek(&it.gen, it.before); p != nil && p.share.Load() == c.spill.sharedNow() {
		c.spill.losses.Add(1)
	}
}

// store writes batch. If its generation ends during the write, it lands under an address that nobody reads any more.
func (c *Cache) store(ctx context.Context, batch []*spillItem) error {
	items := c.link.items(c.format, c.opts.Encoding, batch)
	if mutation.Is(mutation.LabelAtDequeue) {
		items = c.relabel(batch)
	}
	if c.View().Access != AccessShared { // the lease may have ended since the remote tier was asked
		return errNotShared
	}
	start := time.Now()
	err := c.remote.Put(ctx, items, c.opts.TTL)
	if err == nil {
		c.link.stored(items, time.Since(start))
		c.fates.stored(batch, c.now())
	}
	return err
}

// relabel is the bug that LabelAtDequeue seeds.
func (c *Cache) relabel(batch []*spillItem) (items []store.Item) {
	g := c.View().Generation
	for _, e := range batch {
		for p, frame := range e.frames {
			h := e.header(p)
			h.Identity, h.Epoch, h.Act = g.Identity, g.Epoch, codec.Act(g.Act[:])
			_ = c.format.Seal(frame, h)
			items = append(items, store.Item{Key: block.Key(g.Identity.Variant(), g.Epoch, e.hash, p), Value: frame})
		}
	}
	return items
}

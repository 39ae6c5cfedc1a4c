package tiered

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/store"
)

// dropReason says why a block was not stored.
type dropReason uint8

const (
	dropOverflow dropReason = iota // the queue was full, and this was its deepest block
	dropStale                      // its generation ended
	dropShutdown                   // still queued at the end
	drops
)

func (d dropReason) String() string {
	return [drops]string{"overflow", "stale", "shutdown"}[d]
}

// spillQueue holds the blocks on their way to the remote tier, first in, first out, bounded in bytes. A full queue drops its deepest
// block: a chain is useful only from its root, so the deepest is the one whose loss costs least.
type spillQueue struct {
	max     int64
	stats   *counters
	tenants *tenants
	wake    chan struct{} // holds a token while there may be work

	stepped func() // with Options.Steps: the task that stores; it is handed out once per offer
	storing bool   // with Options.Steps: one is under way

	mu struct {
		sync.Mutex
		items   []*entry
		n       int64         // bytes of items and of the batch being stored
		pending int           // blocks in the batch being stored
		empty   chan struct{} // closed when nothing is queued or being stored
	}
}

func newSpillQueue(maxBytes int64, stats *counters, t *tenants) *spillQueue {
	q := &spillQueue{max: maxBytes, stats: stats, tenants: t, wake: make(chan struct{}, 1)}
	q.mu.empty = make(chan struct{})
	close(q.mu.empty)
	return q
}

// offer queues e with a reference of its own, unless it is queued or stored already. It never blocks.
func (q *spillQueue) offer(e *entry) {
	if !e.share.CompareAndSwap(unshared, queued) {
		return
	}
	q.mu.Lock()
	if len(q.mu.items)+q.mu.pending == 0 {
		q.mu.empty = make(chan struct{})
	}
	q.mu.items = append(q.mu.items, e.retain())
	q.mu.n += e.cost()
	var out []*entry
	for q.mu.n > q.max && len(q.mu.items) > 0 {
		out = append(out, q.removeDeepest())
	}
	q.settle()
	q.mu.Unlock()
	q.discard(out, dropOverflow)
	if q.stepped != nil {
		q.stepped()
		return
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// removeDeepest takes out the deepest block, the youngest of equals. mu is held.
func (q *spillQueue) removeDeepest() *entry {
	at := 0
	for i, e := range q.mu.items {
		if e.depth >= q.mu.items[at].depth {
			at = i
		}
	}
	e := q.mu.items[at]
	q.mu.items = slices.Delete(q.mu.items, at, at+1)
	q.mu.n -= e.cost()
	return e
}

// settle announces an empty queue. mu is held.
func (q *spillQueue) settle() {
	if len(q.mu.items)+q.mu.pending == 0 {
		select {
		case <-q.mu.empty:
		default:
			close(q.mu.empty)
		}
	}
}

// take removes up to maxBytes of blocks that v allows from the front, one at least, and drops those of another generation or of a tenant
// purged since: a put that was under way across a change may queue its block after the queue was emptied. Taken blocks stay
// accounted until done.
func (q *spillQueue) take(maxBytes int64, v View) []*entry {
	q.mu.Lock()
	var batch, stale []*entry
	sum, n := int64(0), 0
	for _, e := range q.mu.items {
		if (e.gen != v.Generation || v.Cuts[e.ns] != e.cut) && !mutation.Is(mutation.LabelAtDequeue) {
			stale = append(stale, e)
			q.mu.n -= e.cost()
		} else if sum += e.cost(); len(batch) > 0 && sum > maxBytes {
			break
		} else {
			batch = append(batch, e)
		}
		n++
	}
	q.mu.items = slices.Delete(q.mu.items, 0, n)
	q.mu.pending = len(batch)
	q.settle()
	q.mu.Unlock()
	q.discard(stale, dropStale)
	return batch
}

// done ends the batch that take returned: stored, or to be tried again before anything else.
func (q *spillQueue) done(batch []*entry, stored bool) {
	q.mu.Lock()
	q.mu.pending = 0
	if !stored {
		q.mu.items = slices.Insert(q.mu.items, 0, batch...)
		q.mu.Unlock()
		return
	}
	for _, e := range batch {
		q.mu.n -= e.cost()
		e.share.Store(shared)
		q.tenants.stored(e.ns, e.cost()-entryOverhead)
	}
	q.settle()
	q.mu.Unlock()
	q.stats.spilled.Add(int64(len(batch)))
	for _, e := range batch {
		e.release()
	}
}

// dropAll discards what is queued and returns how many blocks that were. A batch being stored is left to its storer.
func (q *spillQueue) dropAll(why dropReason) int {
	q.mu.Lock()
	out := q.mu.items
	q.mu.items = nil
	for _, e := range out {
		q.mu.n -= e.cost()
	}
	q.settle()
	q.mu.Unlock()
	q.discard(out, why)
	return len(out)
}

// dropPurged discards what is queued and was not computed behind cuts.
func (q *spillQueue) dropPurged(cuts map[block.Digest]block.Cut) {
	var out []*entry
	q.mu.Lock()
	q.mu.items = slices.DeleteFunc(q.mu.items, func(e *entry) bool {
		if cuts[e.ns] == e.cut {
			return false
		}
		q.mu.n -= e.cost()
		out = append(out, e)
		return true
	})
	q.settle()
	q.mu.Unlock()
	q.discard(out, dropStale)
}

func (q *spillQueue) discard(out []*entry, why dropReason) {
	q.stats.spillDrops[why].Add(int64(len(out)))
	for _, e := range out {
		e.share.Store(unshared)
		e.release()
	}
}

func (q *spillQueue) bytes() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.n
}

// waitEmpty waits until nothing is queued or being stored, and reports whether it came to that before ctx ended.
func (q *spillQueue) waitEmpty(ctx context.Context) bool {
	q.mu.Lock()
	empty := q.mu.empty
	q.mu.Unlock()
	select {
	case <-empty:
		return true
	case <-ctx.Done():
		return false
	}
}

const (
	spillBatchBytes = 16 << 20 // several of the store's pipelines, so that the wire does not idle between batches
	spillPauseMin   = 50 * time.Millisecond
	spillPauseMax   = 5 * time.Second
)

// spillLoop stores queued blocks until the cache is closed. While the remote tier is sick or full it waits, longer each time, and the
// bounded queue decides what is given up.
func (c *Cache) spillLoop() {
	pause := time.Duration(0)
	for {
		batch := c.spill.take(spillBatchBytes, c.View())
		if len(batch) == 0 {
			select {
			case <-c.spill.wake:
				continue
			case <-c.ctx.Done():
				return
			}
		}
		err := c.store(batch)
		c.spill.done(batch, err == nil)
		if err == nil {
			if pause > 0 {
				c.opts.Logger.Info("spilling resumed")
			}
			pause = 0
			continue
		}
		if pause == 0 {
			c.opts.Logger.Warn("spilling paused", "err", err)
		}
		pause = min(max(2*pause, spillPauseMin), spillPauseMax)
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
			return
		}
	}
}

// errNotShared pauses spilling while there is no lease; the queue keeps what it can.
var errNotShared = errors.New("tiered: no lease on the epoch")

// store writes batch. If its generation ends during the write, it lands under an address that nobody reads any more.
func (c *Cache) store(batch []*entry) error {
	if c.View().Access != AccessShared {
		return errNotShared
	}
	items := c.link.items(c.format, c.opts.Encoding, batch)
	if mutation.Is(mutation.LabelAtDequeue) {
		items = c.relabel(batch)
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.SpillTimeout)
	defer cancel()
	start := time.Now()
	err := c.remote.Put(ctx, items, c.opts.TTL)
	if err == nil {
		c.link.stored(items, time.Since(start))
		c.fates.stored(batch, c.now())
	}
	return err
}

// relabel is the bug that LabelAtDequeue seeds.
func (c *Cache) relabel(batch []*entry) (items []store.Item) {
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

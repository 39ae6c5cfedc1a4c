package tiered

import (
	"bytes"
	"cmp"
	"context"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered/internal/spill"
)

// reshareRate bounds what is offered again because the remote tier is supposed to have lost it, in bytes of blocks per second: so much takes
// part of a link and leaves the rest to what is new. What the tier still has costs a question only.
const reshareRate = 64 << 20

// noticeLoss takes note that the remote tier has lost blocks: all that it is believed to have are in doubt. What is hot and was used again is offered
// again, the rest when it is.
func (c *Cache) noticeLoss() {
	s := &c.spill
	s.losses.Add(1)
	s.guard.reset()
	blocks := c.hot.used()
	s.again.begin(blocks)
	c.opts.Logger.Warn("the remote tier has lost blocks", "offered again", len(blocks))
}

// resharing is what is on its way to the remote tier again, in order, by name: it may leave the hot tier meanwhile.
type resharing struct {
	limit *rate.Limiter
	left  atomic.Int64
	rest  []block.Hash // the storer's
}

func (r *resharing) init() { r.limit = rate.NewLimiter(reshareRate, spill.BatchBytes) }

// allow reports whether a block of so many bytes may be offered again now.
func (r *resharing) allow(now time.Time, cost int64) bool {
	return r.limit.AllowN(now, int(min(cost, spill.BatchBytes)))
}

func (r *resharing) begin(hashes []block.Hash) {
	r.rest = hashes
	r.left.Store(int64(len(hashes)))
}

func (r *resharing) pending() bool { return r.left.Load() > 0 }

// reshare offers what is to be shared again, as much as may be now, and returns when to go on.
func (c *Cache) reshare() time.Duration {
	r := &c.spill.again
	for len(r.rest) > 0 {
		if c.spill.queue.Bytes() > c.opts.SpillBytes/2 {
			return watchPause // a turn of the storer makes room, and comes back here
		}
		e := c.hot.get(r.rest[0])
		if e != nil {
			if c.inDoubt(e) {
				if !r.allow(c.now(), e.cost()) {
					e.release()
					return 100 * time.Millisecond
				}
				c.offer(e)
			}
			e.release()
		}
		r.rest = r.rest[1:]
		r.left.Add(-1)
	}
	return math.MaxInt64
}

// inDoubt reports whether e was in the remote tier once and may be there no more.
func (c *Cache) inDoubt(e *entry) bool {
	s := e.share.Load()
	return s >= shared && s != c.sharedNow()
}

// get returns a hot block of the current generation with a reference, without touching it, or nil.
func (h *hot) get(hash block.Hash) *entry {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if e := h.mu.blocks[hash]; e != nil {
		return e.retain()
	}
	return nil
}

// used returns the names of the hot blocks that a request has found hot: roots first, and among equals what was used last.
func (h *hot) used() []block.Hash {
	return h.names(func(e *entry) bool { return e.used.Load() })
}

// names returns the names of those hot blocks that want says: roots first, and among equals what was used last.
func (h *hot) names(want func(*entry) bool) []block.Hash {
	h.mu.RLock()
	var all []*entry
	for _, e := range h.mu.blocks {
		if want(e) {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.depth, b.depth), cmp.Compare(b.seq, a.seq), bytes.Compare(a.hash[:], b.hash[:]))
	})
	hashes := make([]block.Hash, len(all))
	for i, e := range all {
		hashes[i] = e.hash
	}
	h.mu.RUnlock()
	return hashes
}

// offerHot is what WriteOnEvict does at the end: everything that is hot leaves. It offers, roots first, what is not stored as long as ctx lasts,
// and returns how many blocks it has not come to.
func (c *Cache) offerHot(ctx context.Context) (left int) {
	hashes := c.hot.names(func(e *entry) bool { s := e.share.Load(); return s != queued && s != c.sharedNow() })
	for i, h := range hashes {
		if !c.spill.queue.WaitRoom(ctx) {
			return len(hashes) - i
		}
		if e := c.hot.get(h); e != nil {
			c.offer(e)
			e.release()
		}
	}
	return 0
}

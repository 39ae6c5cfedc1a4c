package tiered

import (
	"container/heap"
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// dropReason says why a block was not stored.
type dropReason uint8

const (
	dropOverflow   dropReason = iota // the queue was full, and this was its deepest block
	dropStale                        // its generation ended
	dropShutdown                     // still queued at the end
	dropIncomplete                   // a block before it in its chain is neither stored nor queued: without that one nobody finds it
	drops
)

func (d dropReason) String() string {
	return [drops]string{"overflow", "stale", "shutdown", "incomplete"}[d]
}

// spillQueue holds the blocks on their way to the remote tier, first in, first out, bounded in bytes. A full queue drops its deepest
// block: a chain is useful only from its root, so the deepest is the one whose loss costs least. A block is queued behind the one before it
// in its chain, or when that one is stored already as far as is known; the storer asks once more.
type spillQueue struct {
	max     int64
	stats   *counters
	tenants *tenants
	wake    chan struct{} // holds a token while there may be work
	losses  atomic.Uint32 // how often the remote tier was found, or has to be supposed, to have lost blocks
	trusted time.Time     // when that was supposed last; the storer's

	stepped func() // with Options.Steps: the task that stores; it is handed out once per offer
	storing bool   // with Options.Steps: one is under way

	mu struct {
		sync.Mutex
		fifo    list.List // of *spillItem
		deepest spillHeap // the same items
		byHash  map[block.Hash]*spillItem
		seq     uint64        // of the youngest item
		n       int64         // bytes of all items and of the batch being stored
		pending int           // blocks in the batch being stored
		empty   chan struct{} // closed when nothing is queued or being stored
	}
}

// spillItem is a queued block, with a reference.
type spillItem struct {
	*entry
	before block.Hash // the block before it in its chain, if its depth is not 0
	seq    uint64     // orders items of equal depth: the youngest leaves first
	at     int        // in the heap
	el     *list.Element
}

func newSpillQueue(maxBytes int64, stats *counters, t *tenants) *spillQueue {
	q := &spillQueue{max: maxBytes, stats: stats, tenants: t, wake: make(chan struct{}, 1)}
	q.mu.byHash = map[block.Hash]*spillItem{}
	q.mu.empty = make(chan struct{})
	close(q.mu.empty)
	return q
}

// sharedNow is the state of a block that has just been seen in the remote tier.
func (q *spillQueue) sharedNow() uint32 { return shared + q.losses.Load() }

// claim makes e queued if it is neither that nor shared beyond doubt.
func (q *spillQueue) claim(e *entry) bool {
	s := e.share.Load()
	return s != queued && s != q.sharedNow() && e.share.CompareAndSwap(s, queued)
}

// offer queues e, which comes after before in its chain, unless it is queued or stored already. It never blocks, and reports whether the
// chain is stored or queued up to e: if not, there is no use in offering what follows.
func (q *spillQueue) offer(e *entry, before block.Hash) bool {
	if !q.claim(e) {
		return true
	}
	q.mu.Lock()
	if twin, ok := q.mu.byHash[e.hash]; ok && twin.gen == e.gen && twin.cut == e.cut {
		q.mu.Unlock()
		e.share.Store(unshared) // computed a second time while the first was on its way: in doubt until that has arrived
		return true
	}
	if q.mu.fifo.Len()+q.mu.pending == 0 {
		q.mu.empty = make(chan struct{})
	}
	it := &spillItem{entry: e.retain(), before: before}
	q.push(it, false)
	q.mu.n += e.cost()
	var out []*spillItem
	for q.mu.n > q.max && len(q.mu.deepest) > 0 {
		out = append(out, q.remove(q.mu.deepest[0]))
	}
	kept := it.el != nil
	q.stats.spillDrops[dropOverflow].Add(int64(len(out)))
	q.settle()
	q.mu.Unlock()
	q.discard(out)
	if q.stepped != nil {
		q.stepped()
		return kept
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return kept
}

// push adds it at either end of the queue. mu is held.
func (q *spillQueue) push(it *spillItem, front bool) {
	if front {
		it.el = q.mu.fifo.PushFront(it)
	} else {
		q.mu.seq++
		it.seq = q.mu.seq
		it.el = q.mu.fifo.PushBack(it)
	}
	heap.Push(&q.mu.deepest, it)
	q.mu.byHash[it.hash] = it
}

// remove takes it out for good. mu is held.
func (q *spillQueue) remove(it *spillItem) *spillItem {
	q.unlink(it)
	q.forget(it)
	return it
}

// unlink takes it out of the order, not out of the account. mu is held.
func (q *spillQueue) unlink(it *spillItem) {
	q.mu.fifo.Remove(it.el)
	heap.Remove(&q.mu.deepest, it.at)
	it.el = nil
}

// forget ends the account of it. mu is held.
func (q *spillQueue) forget(it *spillItem) {
	q.mu.n -= it.cost()
	if q.mu.byHash[it.hash] == it {
		delete(q.mu.byHash, it.hash)
	}
}

// settle announces an empty queue. mu is held.
func (q *spillQueue) settle() {
	if q.mu.fifo.Len()+q.mu.pending == 0 {
		select {
		case <-q.mu.empty:
		default:
			close(q.mu.empty)
		}
	}
}

// has reports whether a block of that name and generation is queued or being stored.
func (q *spillQueue) has(g *Generation, hash block.Hash) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	it, ok := q.mu.byHash[hash]
	return ok && it.gen == *g
}

// take removes up to maxBytes of blocks that v allows from the front, one at least, and drops those of another generation or of a tenant
// purged since: a put that was under way across a change may queue its block after the queue was emptied. Taken blocks stay
// accounted until done.
func (q *spillQueue) take(maxBytes int64, v View) []*spillItem {
	q.mu.Lock()
	var batch, stale []*spillItem
	sum := int64(0)
	for el := q.mu.fifo.Front(); el != nil; el = q.mu.fifo.Front() {
		it := el.Value.(*spillItem)
		if (it.gen != v.Generation || v.Cuts[it.ns] != it.cut) && !mutation.Is(mutation.LabelAtDequeue) {
			stale = append(stale, q.remove(it))
			continue
		}
		if sum += it.cost(); len(batch) > 0 && sum > maxBytes {
			break
		}
		q.unlink(it)
		batch = append(batch, it)
	}
	q.mu.pending = len(batch)
	q.stats.spillDrops[dropStale].Add(int64(len(stale)))
	q.settle()
	q.mu.Unlock()
	q.discard(stale)
	return batch
}

// retry ends the batch that take returned without success: it is to be tried again before anything else.
func (q *spillQueue) retry(batch []*spillItem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.pending = 0
	for i := len(batch) - 1; i >= 0; i-- {
		q.push(batch[i], true)
	}
}

// done ends the batch that take returned: some were stored, some the remote tier had, some have no place there.
func (q *spillQueue) done(stored, had, incomplete []*spillItem) {
	now := q.sharedNow()
	q.mu.Lock()
	q.mu.pending = 0
	for _, it := range incomplete {
		q.forget(it)
	}
	for _, batch := range [][]*spillItem{stored, had} {
		for _, it := range batch {
			q.forget(it)
			it.share.Store(now)
		}
	}
	for _, it := range stored {
		q.tenants.stored(it.ns, it.cost()-entryOverhead)
	}
	q.stats.spilled.Add(int64(len(stored))) // before settle: whoever waited for an empty queue finds all of it counted
	q.stats.skipped.Add(int64(len(had)))
	q.stats.spillDrops[dropIncomplete].Add(int64(len(incomplete)))
	q.settle()
	q.mu.Unlock()
	for _, batch := range [][]*spillItem{stored, had} {
		for _, it := range batch {
			it.release()
		}
	}
	q.discard(incomplete)
}

// dropAll discards what is queued and returns how many blocks that were. A batch being stored is left to its storer.
func (q *spillQueue) dropAll(why dropReason) int {
	return q.dropIf(why, func(*spillItem) bool { return true })
}

// dropPurged discards what is queued and was not computed behind cuts.
func (q *spillQueue) dropPurged(cuts map[block.Digest]block.Cut) {
	q.dropIf(dropStale, func(it *spillItem) bool { return cuts[it.ns] != it.cut })
}

func (q *spillQueue) dropIf(why dropReason, bad func(*spillItem) bool) int {
	var out []*spillItem
	q.mu.Lock()
	for el := q.mu.fifo.Front(); el != nil; {
		it := el.Value.(*spillItem)
		el = el.Next()
		if bad(it) {
			out = append(out, q.remove(it))
		}
	}
	q.stats.spillDrops[why].Add(int64(len(out)))
	q.settle()
	q.mu.Unlock()
	q.discard(out)
	return len(out)
}

// discard lets go of blocks that have left the queue without being stored.
func (q *spillQueue) discard(out []*spillItem) {
	for _, it := range out {
		it.share.Store(unshared)
		it.release()
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

// spillHeap has the deepest item first, the youngest of equals.
type spillHeap []*spillItem

func (h spillHeap) Len() int { return len(h) }
func (h spillHeap) Less(i, j int) bool {
	return h[i].depth > h[j].depth || h[i].depth == h[j].depth && h[i].seq > h[j].seq
}
func (h spillHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

// Push implements heap.Interface.
func (h *spillHeap) Push(x any) {
	it := x.(*spillItem)
	it.at = len(*h)
	*h = append(*h, it)
}

// Pop implements heap.Interface.
func (h *spillHeap) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return it
}

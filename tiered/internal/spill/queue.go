package spill

import (
	"container/heap"
	"container/list"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Queue holds blocks on their way to the remote tier: first in, first out, as far as nothing is sick. It is safe for concurrent use.
type Queue[B Block[B]] struct {
	max   int64
	valid func(B) bool
	ended func(B, End)
	wake  func()

	mu struct {
		sync.Mutex
		ready  list.List // of *item: in order
		parks  parks[B]  // what is set aside, soonest first
		deep   [2]deepest[B]
		bytes  [2]int64 // of ready and of parked items
		n      int64    // bytes of everything that has not ended
		count  int      // items that have not ended
		byHash map[block.Hash]*item[B]
		seq    uint64        // of the youngest item
		turns  uint64        // of take
		empty  chan struct{} // closed while nothing is queued
		moved  chan struct{} // closed after the next batch; nil if nobody waits
	}
}

// state says where an item is.
type state uint8

const (
	ready state = iota
	parked
	taken
)

// item is a queued block.
type item[B Block[B]] struct {
	b       B
	cost    int64
	seq     uint64 // orders items of equal depth: the youngest leaves first
	at      int    // in deep
	el      *list.Element
	state   state
	park    *park[B] // if parked, or taken from there
	trial   bool     // if taken: from there
	rescued bool     // what its chain lacks has been offered once
}

// QueueOptions say what a queue does with blocks.
type QueueOptions[B Block[B]] struct {
	MaxBytes int64
	// Valid reports whether a block may be stored now. It is asked when the block leaves the queue for a batch, with the queue locked.
	Valid func(B) bool
	// Ended is told of every block that was offered and not Twin, once, by whoever ends it: several goroutines may at once. The block is the
	// caller's again.
	Ended func(B, End)
	// Wake is told that there is something to store. It must not wait.
	Wake func()
}

// NewQueue returns an empty queue.
func NewQueue[B Block[B]](o QueueOptions[B]) *Queue[B] {
	q := &Queue[B]{max: o.MaxBytes, valid: o.Valid, ended: o.Ended, wake: o.Wake}
	q.mu.byHash = map[block.Hash]*item[B]{}
	q.mu.empty = make(chan struct{})
	close(q.mu.empty)
	return q
}

// Offered says what became of an offer.
type Offered uint8

// Answers to an offer.
const (
	Queued  Offered = iota // the queue has it until it ends
	Refused                // it has ended: there was no room for it
	Twin                   // the queue has one that stands for it; this one stays the caller's
)

// Offer queues b. It never waits.
func (q *Queue[B]) Offer(b B) Offered {
	q.mu.Lock()
	if q.twin(b.Hash(), b) != nil {
		q.mu.Unlock()
		return Twin
	}
	if q.mu.count == 0 {
		q.mu.empty = make(chan struct{})
	}
	q.mu.seq++
	it := &item[B]{b: b, cost: b.Cost(), seq: q.mu.seq}
	q.mu.n += it.cost
	q.mu.count++
	q.mu.byHash[b.Hash()] = it
	if p := q.parkOf(it); p != nil {
		q.join(p, it, false)
	} else {
		q.push(it, false)
	}
	out := q.overflow()
	q.mu.Unlock()
	q.tell(out, Overflow)
	q.wake()
	if slices.Contains(out, it) {
		return Refused
	}
	return Queued
}

// overflow takes out what is beyond the bound. mu is held.
func (q *Queue[B]) overflow() (out []*item[B]) {
	for q.mu.n > q.max {
		from := ready
		switch a, b := q.mu.deep[ready], q.mu.deep[parked]; {
		case len(a)+len(b) == 0:
			return out // the rest is being stored
		case len(a) == 0, len(b) > 0 && (q.mu.bytes[parked] > q.max/2 || b[0].deeper(a[0])):
			from = parked
		}
		out = append(out, q.drop(q.mu.deep[from][0]))
	}
	return out
}

// twin returns the queued item that stands for b, under hash. mu is held.
func (q *Queue[B]) twin(hash block.Hash, b B) *item[B] {
	if it, ok := q.mu.byHash[hash]; ok && it.b.Twin(b) {
		return it
	}
	return nil
}

// Holds reports whether a block of that name, of the generation and tenant of like, is queued or being stored.
func (q *Queue[B]) Holds(hash block.Hash, like B) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.twin(hash, like) != nil
}

// push makes it ready, at either end. mu is held.
func (q *Queue[B]) push(it *item[B], front bool) {
	it.state, it.park = ready, nil
	if front {
		it.el = q.mu.ready.PushFront(it)
	} else {
		it.el = q.mu.ready.PushBack(it)
	}
	q.count(it)
}

// count enters it among those that can be dropped. mu is held.
func (q *Queue[B]) count(it *item[B]) {
	q.mu.bytes[it.state] += it.cost
	heap.Push(&q.mu.deep[it.state], it)
}

// unlink takes it out of the order and out of those that can be dropped, not out of the account. mu is held.
func (q *Queue[B]) unlink(it *item[B]) {
	q.mu.bytes[it.state] -= it.cost
	heap.Remove(&q.mu.deep[it.state], it.at)
	if it.state == ready {
		q.mu.ready.Remove(it.el)
	} else {
		it.park.items.Remove(it.el)
		q.tidy(it.park)
	}
	it.el, it.state = nil, taken // it remembers where it was parked
}

// drop takes it out for good. tell has to follow. mu is held.
func (q *Queue[B]) drop(it *item[B]) *item[B] {
	q.unlink(it)
	q.forget(it)
	return it
}

// forget ends the account of it but for its being counted: from now on its block can be offered again. mu is held.
func (q *Queue[B]) forget(it *item[B]) {
	q.mu.n -= it.cost
	if q.mu.byHash[it.b.Hash()] == it {
		delete(q.mu.byHash, it.b.Hash())
	}
}

// tell tells of items that are forgotten, and only then lets them count no more: whoever waits for an empty queue finds all of it told.
func (q *Queue[B]) tell(items []*item[B], why End) {
	if len(items) == 0 {
		return
	}
	for _, it := range items {
		q.ended(it.b, why)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.count -= len(items); q.mu.count == 0 {
		close(q.mu.empty)
	}
	q.announce()
}

// DropIf ends what is queued, not what is being stored, where bad says so. It returns how many blocks that were.
func (q *Queue[B]) DropIf(why End, bad func(B) bool) int {
	var out []*item[B]
	q.mu.Lock()
	lists := []*list.List{&q.mu.ready}
	for _, p := range q.mu.parks {
		lists = append(lists, &p.items)
	}
	for _, l := range lists {
		for el := l.Front(); el != nil; {
			it := el.Value.(*item[B])
			el = el.Next()
			if bad(it.b) {
				out = append(out, q.drop(it))
			}
		}
	}
	q.mu.Unlock()
	q.tell(out, why)
	return len(out)
}

// Bytes is what everything costs that has not ended.
func (q *Queue[B]) Bytes() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.n
}

// Parked is how many runs are set aside.
func (q *Queue[B]) Parked() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.mu.parks)
}

// WaitEmpty waits until nothing is queued or being stored, and reports whether it came to that before ctx ended.
func (q *Queue[B]) WaitEmpty(ctx context.Context) bool {
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

// announce tells those who wait for room. mu is held.
func (q *Queue[B]) announce() {
	if q.mu.moved != nil {
		close(q.mu.moved)
		q.mu.moved = nil
	}
}

// WaitRoom waits until less than half of the queue is on its way, not counting what is parked, and reports whether it came to that before ctx
// ended.
func (q *Queue[B]) WaitRoom(ctx context.Context) bool {
	for ctx.Err() == nil {
		q.mu.Lock()
		if q.mu.n-q.mu.bytes[parked] < q.max/2 {
			q.mu.Unlock()
			return true
		}
		if q.mu.moved == nil {
			q.mu.moved = make(chan struct{})
		}
		moved := q.mu.moved
		q.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
		}
	}
	return false
}

// take removes up to maxBytes of blocks for a batch, one at least if there is one: what is ready, in order, and the first blocks of what is
// parked and due, a quarter of the bytes at most. They take turns at coming first, so that neither keeps the other waiting. Without due, nothing
// parked is taken. The caller gives all of it back with settle.
func (q *Queue[B]) take(maxBytes int64, now time.Time, due bool) (batch []*item[B]) {
	t := taking[B]{Queue: q, most: maxBytes, now: now}
	q.mu.Lock()
	switch q.mu.turns++; {
	case !due:
		t.ready()
	case q.mu.turns%2 == 0:
		t.due()
		t.ready()
	default:
		t.ready()
		t.due()
	}
	q.mu.Unlock()
	q.tell(t.stale, Stale)
	return t.batch
}

// taking is the state of a take. mu is held.
type taking[B Block[B]] struct {
	*Queue[B]
	most  int64
	now   time.Time
	batch []*item[B]
	sum   int64
	stale []*item[B]
}

// fits reports whether it may come into the batch, and counts it.
func (t *taking[B]) fits(it *item[B], most int64) bool {
	if len(t.batch) > 0 && t.sum+it.cost > most {
		return false
	}
	t.sum += it.cost
	t.batch = append(t.batch, it)
	return true
}

func (t *taking[B]) ready() {
	for el := t.mu.ready.Front(); el != nil; el = t.mu.ready.Front() {
		it := el.Value.(*item[B])
		if !t.valid(it.b) {
			t.stale = append(t.stale, t.drop(it))
			continue
		}
		if !t.fits(it, t.most) {
			return
		}
		t.unlink(it)
		it.trial = false
	}
}

func (t *taking[B]) due() {
	most := min(t.most, t.sum+t.most/4)
	for len(t.mu.parks) > 0 && t.mu.parks[0].isDue(t.now) {
		p := t.mu.parks[0]
		it := p.items.Front().Value.(*item[B])
		if !t.valid(it.b) {
			t.stale = append(t.stale, t.drop(it))
			continue
		}
		if !t.fits(it, most) {
			return
		}
		t.try(p)
		t.unlink(it)
		it.trial = true
	}
}

// deepest has the deepest item first, the youngest of equals.
type deepest[B Block[B]] []*item[B]

func (it *item[B]) deeper(than *item[B]) bool {
	d, e := it.b.Depth(), than.b.Depth()
	return d > e || d == e && it.seq > than.seq
}

func (h deepest[B]) Len() int           { return len(h) }
func (h deepest[B]) Less(i, j int) bool { return h[i].deeper(h[j]) }
func (h deepest[B]) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

// Push implements heap.Interface.
func (h *deepest[B]) Push(x any) {
	it := x.(*item[B])
	it.at = len(*h)
	*h = append(*h, it)
}

// Pop implements heap.Interface.
func (h *deepest[B]) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return it
}

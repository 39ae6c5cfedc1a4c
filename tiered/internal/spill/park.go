package spill

import (
	"container/heap"
	"container/list"
	"time"
)

const (
	// PauseMin is how long the storer leaves alone what has failed for the first time.
	PauseMin = 50 * time.Millisecond
	// PauseMax is how long at most: each failure doubles the pause.
	PauseMax = 5 * time.Second
)

func longer(pause time.Duration) time.Duration { return min(max(2*pause, PauseMin), PauseMax) }

// park is what failed of a run, and what has been offered behind it since.
type park[B Block[B]] struct {
	items list.List // of *item, in the order of the chain
	due   time.Time // when the first of them is tried
	pause time.Duration
	// trying says that the first of them is in a batch, which decides about the others. It is not among items then.
	trying bool
	at     int // in parks
}

func (p *park[B]) isDue(now time.Time) bool { return !p.trying && !p.due.After(now) }

// parks has what is due first first, and last what is being tried.
type parks[B Block[B]] []*park[B]

func (h parks[B]) Len() int { return len(h) }
func (h parks[B]) Less(i, j int) bool {
	if h[i].trying != h[j].trying {
		return h[j].trying
	}
	return h[i].due.Before(h[j].due)
}
func (h parks[B]) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

// Push implements heap.Interface.
func (h *parks[B]) Push(x any) {
	p := x.(*park[B])
	p.at = len(*h)
	*h = append(*h, p)
}

// Pop implements heap.Interface.
func (h *parks[B]) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return p
}

// park sets it aside, alone so far. mu is held.
func (q *Queue[B]) park(it *item[B], now time.Time) *park[B] {
	p := &park[B]{pause: PauseMin, due: now.Add(PauseMin)}
	heap.Push(&q.mu.parks, p)
	q.join(p, it, false)
	return p
}

// join sets it aside with the others of p, at either end. mu is held.
func (q *Queue[B]) join(p *park[B], it *item[B], front bool) {
	it.state, it.park = parked, p
	if front {
		it.el = p.items.PushFront(it)
	} else {
		it.el = p.items.PushBack(it)
	}
	q.count(it)
}

// parkOf returns where the block before it is parked, nil if it is not: what follows a parked block waits with it. mu is held.
func (q *Queue[B]) parkOf(it *item[B]) *park[B] {
	if it.b.Depth() == 0 {
		return nil
	}
	if before := q.twin(it.b.Before(), it.b); before != nil {
		return before.park
	}
	return nil
}

// gather parks what is ready and follows what is parked. mu is held.
func (q *Queue[B]) gather() {
	for el := q.mu.ready.Front(); el != nil; {
		it := el.Value.(*item[B])
		el = el.Next()
		if p := q.parkOf(it); p != nil {
			q.unlink(it)
			q.join(p, it, false)
		}
	}
}

// try notes that the first of p is about to be taken. mu is held.
func (q *Queue[B]) try(p *park[B]) {
	p.trying = true
	heap.Fix(&q.mu.parks, p.at)
}

// tried ends that: it is parked again, until due. mu is held.
func (q *Queue[B]) tried(it *item[B], due time.Time) {
	p := it.park
	p.trying, p.due = false, due
	heap.Fix(&q.mu.parks, p.at)
	q.join(p, it, true)
}

// tidy forgets p if it is empty. mu is held.
func (q *Queue[B]) tidy(p *park[B]) {
	if p.items.Len() == 0 && !p.trying {
		heap.Remove(&q.mu.parks, p.at)
	}
}

// dissolve makes all of p ready: before everything else, or after. mu is held.
func (q *Queue[B]) dissolve(p *park[B], front bool) {
	p.trying = true // so that it stays until the end
	var items []*item[B]
	for el := p.items.Front(); el != nil; el = p.items.Front() {
		it := el.Value.(*item[B])
		q.unlink(it)
		items = append(items, it)
	}
	p.trying = false
	heap.Fix(&q.mu.parks, p.at)
	q.tidy(p)
	q.pushAll(items, front)
}

// pushAll makes items ready, in their order: before everything else, or after. mu is held.
func (q *Queue[B]) pushAll(items []*item[B], front bool) {
	for i := range items {
		if front {
			q.push(items[len(items)-1-i], true)
		} else {
			q.push(items[i], false)
		}
	}
}

// nextDue is when something that is parked will be tried, the zero time if nothing is.
func (q *Queue[B]) nextDue() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.mu.parks) == 0 {
		return time.Time{}
	}
	return q.mu.parks[0].due
}

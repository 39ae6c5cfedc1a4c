package llama

import (
	"sync"
	"sync/atomic"
)

// crew lends out the threads of a model. A call computes on its caller's goroutine and asks for helpers; it gets those that
// no other call uses, so that all sequences together compute on at most Options.Threads goroutines, plus one for each
// call beyond that number. How many a call gets changes no bit of its result.
type crew struct{ idle atomic.Int64 }

func newCrew(threads int) *crew {
	c := &crew{}
	c.idle.Store(int64(threads))
	return c
}

// take returns how many threads the caller may use, at least 1, and how to give them back.
func (c *crew) take(most int) int {
	for {
		idle := c.idle.Load()
		n := min(max(idle, 1), int64(most))
		if c.idle.CompareAndSwap(idle, idle-n) {
			return int(n)
		}
	}
}

func (c *crew) give(n int) { c.idle.Add(int64(n)) }

// team shares out the items of one phase after the other among the caller and its helpers. Items are claimed one by one,
// so a thread that the machine takes away for a while holds up at most the item it is at.
//
// Helpers live for one call. Between phases everybody spins for a moment and then parks: a phase of a decoded token takes
// some 10 µs, and waking a parked goroutine as long again, but on a busy machine spinning would take the processor from
// the very thread that is waited for.
type team struct {
	run func(worker, item int) // of the current phase; written by the caller only while no item is claimed
	// state is phase (32 bits) | items (16 bits) | next item (16 bits). A helper claims by compare-and-swap, so that a
	// claim made from an outdated look never succeeds.
	state  atomic.Uint64
	done   atomic.Int64 // items finished in the current phase
	quit   atomic.Bool
	parked atomic.Int64  // helpers that wait for wake, or are about to
	wake   chan struct{} // a token per helper to wake; left-over tokens only make a helper look once more
	ready  atomic.Bool   // the caller waits for finished, or is about to
	// finished has a token when the last item is done; a left-over one only makes the caller look once more.
	finished chan struct{}
	wg       sync.WaitGroup
	phase    uint64
	size     int // caller and helpers
}

// maxItems is the most items of a phase.
const maxItems = 1<<16 - 1

// spins is how often somebody looks before parking, about 10 µs.
const spins = 10000

// start makes a team of n, the caller included. The caller must end with stop.
func (t *team) start(n int) {
	t.size = n
	if cap(t.wake) < n {
		t.wake, t.finished = make(chan struct{}, n), make(chan struct{}, 1)
	}
	t.quit.Store(false)
	for worker := 1; worker < n; worker++ {
		t.wg.Go(func() { t.help(worker) })
	}
}

// stop ends the helpers and waits for them.
func (t *team) stop() {
	t.quit.Store(true)
	t.rouse()
	t.wg.Wait()
	t.run = nil
}

// do calls run(worker, item) for every item from 0 to items-1, each once, and returns when all have finished. Workers are
// numbered below the team's size: scratch indexed by worker is used by one goroutine at a time.
func (t *team) do(items int, run func(worker, item int)) {
	if t.size == 1 || items <= 1 {
		for i := range items {
			run(0, i)
		}
		return
	}
	t.run = run
	t.done.Store(0)
	t.phase++
	t.state.Store(t.phase<<32 | uint64(items)<<16)
	t.rouse()
	for t.claim(0) {
	}
	for n := 0; t.done.Load() < int64(items); n++ {
		if n < spins {
			continue
		}
		t.ready.Store(true)
		if t.done.Load() < int64(items) { // else the last helper may have looked at ready too early
			<-t.finished
		}
		t.ready.Store(false)
	}
}

// rouse wakes the helpers that have parked.
func (t *team) rouse() {
	for range t.parked.Load() {
		select {
		case t.wake <- struct{}{}:
		default: // a token for everybody is there already
		}
	}
}

// claim takes and runs one item, false if none is left.
func (t *team) claim(worker int) bool {
	for {
		s := t.state.Load()
		next, items := s&0xffff, s>>16&0xffff
		if next >= items {
			return false
		}
		if !t.state.CompareAndSwap(s, s+1) {
			continue
		}
		t.run(worker, int(next))
		if t.done.Add(1) == int64(items) && t.ready.Load() {
			select {
			case t.finished <- struct{}{}:
			default:
			}
		}
		return true
	}
}

// help claims items until quit.
func (t *team) help(worker int) {
	for n := 0; !t.quit.Load(); n++ {
		if t.claim(worker) {
			n = 0
			continue
		}
		if n < spins {
			continue
		}
		t.parked.Add(1)
		// Look again: a phase that began before parked grew wakes nobody.
		if s := t.state.Load(); s&0xffff >= s>>16&0xffff && !t.quit.Load() {
			<-t.wake
		}
		t.parked.Add(-1)
		n = 0
	}
}

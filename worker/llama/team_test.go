package llama

import (
	"sync"
	"sync/atomic"
	"testing"
)

// Every item of every phase runs exactly once, and no phase begins before the one before has ended.
func TestTeamRunsEveryItemOnce(t *testing.T) {
	for size := 1; size <= 4; size++ {
		var tm team
		for range 3 { // teams are used again
			tm.start(size)
			for phase := range 300 {
				items := phase % 40
				ran := make([]atomic.Int32, items)
				busy := make([]atomic.Int32, size)
				tm.do(items, func(worker, item int) {
					if busy[worker].Add(1) != 1 {
						t.Errorf("worker %d runs two items at once", worker)
					}
					ran[item].Add(1)
					busy[worker].Add(-1)
				})
				for i := range ran {
					if n := ran[i].Load(); n != 1 {
						t.Fatalf("size %d, phase %d: item %d ran %d times", size, phase, i, n)
					}
				}
			}
			tm.stop()
		}
	}
}

func TestCrewLendsAtMostWhatItHas(t *testing.T) {
	const threads = 3
	c := newCrew(threads)
	if n := c.take(2); n != 2 {
		t.Fatalf("took %d of %d, want 2", n, threads)
	}
	if n := c.take(5); n != 1 {
		t.Fatalf("took %d, want the one that is left", n)
	}
	if n := c.take(5); n != 1 {
		t.Fatalf("took %d from an empty crew, want the caller's own", n)
	}
	c.give(1)
	c.give(1)
	c.give(2)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				c.give(c.take(threads))
			}
		})
	}
	wg.Wait()
	if n := c.take(10); n != threads {
		t.Errorf("%d are left, want %d", n, threads)
	}
}

package spill_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/tiered/internal/spill"
)

// One node of three refuses everything for ten minutes: what lies on the others is stored as if nothing were the matter, and what lies on that
// one within PauseMax of its return.
func TestOneSickNodeCostsItsOwnBlocksOnly(t *testing.T) {
	for name, err := range map[string]error{
		"down": errDown, "full": errFull, "of unknown extent": errors.New("connection reset"), "late": context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(3, 1<<20)
			w.fleet.sick[1] = err
			var late int // turns of a second until what is healthy is stored
			if !errors.Is(err, store.ErrNode) {
				late = int(spill.PauseMax / time.Second) // nobody can know that it is one node
			}
			healthy := make([]int, 200) // after so many blocks
			for i := range healthy {
				if i > 0 {
					healthy[i] = healthy[i-1]
				}
				if p := (&piece{trunk: i}); p.node(3) != 1 {
					healthy[i]++
				}
				w.offer(i, 0, 1, 1<<10)
				w.run(time.Second)
				if got := stored(w); i >= late && got < healthy[i-late] {
					t.Fatalf("after %d blocks %d are stored, want the %d of healthy nodes", i+1, got, healthy[i-late])
				}
			}
			w.run(10 * time.Minute)
			w.fleet.sick[1] = nil
			w.run(spill.PauseMax)
			if got := stored(w); got != 200 || w.queue.Bytes() != 0 {
				t.Errorf("%d blocks stored, %d bytes queued; want 200 and 0", got, w.queue.Bytes())
			}
			check(t, w)
		})
	}
}

// One batch with healthy and sick blocks, in many chains, is judged block by block, and what is known to be sick slows down nobody else.
func TestABatchIsJudgedBlockByBlock(t *testing.T) {
	for name, err := range map[string]error{"down": errDown, "full": errFull, "of unknown extent": errors.New("connection reset")} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(3, 1<<20)
			w.fleet.sick[1] = err
			healthy := func(p *piece) bool {
				for ; p.depth >= 0; p = p.parent() {
					if p.node(3) == 1 {
						return false
					}
				}
				return true
			}
			for i := range 50 {
				w.offer(i, 0, 3, 1<<10)
			}
			w.storer.Turn(context.Background(), w.clock)
			for i := range 50 {
				for d := range 3 {
					if p := (&piece{trunk: i, depth: d}); healthy(p) && !w.fleet.there(p) {
						t.Errorf("%+v was not stored in the first turn", p.name())
					}
				}
			}
			w.run(time.Minute) // what is parked fails again and again
			p := &piece{trunk: 60, cost: 1 << 10}
			for !healthy(p) {
				p.trunk++
			}
			w.queue.Offer(p)
			if w.run(0); !w.fleet.there(p) {
				t.Error("a healthy block waits because others are known to be sick")
			}
			if w.fleet.vain > 50*3*(5+60/5+1)<<10 {
				t.Errorf("%d bytes were sent in vain", w.fleet.vain)
			}
		})
	}
}

// Where a queue is full of what a sick node does not take, what is healthy still has room: in half of it.
func TestWhatIsParkedMakesRoomFirst(t *testing.T) {
	w := newWorld(3, 64<<10)
	w.fleet.sick[1] = errDown
	for i := range 300 {
		if (&piece{trunk: i}).node(3) == 1 {
			w.offer(i, 0, 1, 1<<10) // roots
		}
	}
	w.run(time.Second)
	if n := w.queue.Bytes(); n != 64<<10 {
		t.Fatalf("%d bytes queued, want a full queue", n)
	}
	for i := range 300 { // deep blocks: they would go first
		p := &piece{trunk: i, branch: 1, depth: 9, cost: 1 << 10}
		if p.node(3) == 1 || p.parent().node(3) == 1 {
			continue
		}
		w.fleet.has[p.parent().node(3)][p.parent().name()] = true
		if w.queue.Offer(p) != spill.Queued {
			t.Fatalf("a healthy block was refused for what a sick node does not take")
		}
		if w.run(0); !w.fleet.there(p) {
			t.Fatal("it was not stored")
		}
	}
	if w.queue.Bytes() < 32<<10 {
		t.Errorf("%d bytes still parked, want half of the queue at least", w.queue.Bytes())
	}
}

// When everything is down, the queue keeps what is nearest to the roots.
func TestAFullQueueDropsTheDeepest(t *testing.T) {
	w := newWorld(1, 8<<10)
	w.fleet.sick[0] = errors.New("connection refused")
	w.offer(1, 0, 4, 1<<10)
	w.run(time.Second)
	w.offer(2, 0, 8, 1<<10)
	w.run(time.Second)
	w.fleet.sick[0] = nil
	w.run(spill.PauseMax)
	for d := range 4 {
		for trunk := 1; trunk <= 2; trunk++ {
			if p := (&piece{trunk: trunk, depth: d}); !w.fleet.there(p) {
				t.Errorf("%+v was dropped", p.name())
			}
		}
	}
	if got := w.ends[spill.Overflow]; got != 1 {
		t.Errorf("%d blocks dropped for space, want the one that did not fit", got)
	}
}

// What nobody could be asked about is nobody's fault: it waits, and everything goes on at once when it may.
func TestNotNowParksNothing(t *testing.T) {
	w := newWorld(2, 1<<20)
	w.fleet.sick[0] = fmt.Errorf("%w: no lease", spill.ErrNotNow)
	w.fleet.sick[1] = w.fleet.sick[0]
	for i := range 20 {
		w.offer(i, 0, 3, 1<<10)
	}
	w.run(time.Minute)
	if got := w.queue.Parked(); got != 0 {
		t.Errorf("%d runs parked", got)
	}
	if w.fleet.calls > 40*60 {
		t.Errorf("%d calls in a minute", w.fleet.calls)
	}
	w.fleet.sick[0], w.fleet.sick[1] = nil, nil
	w.run(spill.PauseMax)
	if got := stored(w); got != 60 {
		t.Errorf("%d blocks stored, want 60", got)
	}
}

// On a link on which a whole batch takes longer than its time, smaller ones get through.
func TestBatchesFitTheLink(t *testing.T) {
	w := newWorld(1, 1<<30)
	w.fleet.rate = 3 << 19 // a block and a half
	for i := range 20 {
		w.offer(i, 0, 3, 1<<20)
	}
	w.run(2 * time.Minute)
	if got := stored(w); got != 60 {
		t.Errorf("%d blocks stored, want 60", got)
	}
}

// A block whose predecessor was lost is stored behind it if somebody still has that.
func TestALostPredecessorIsStoredAgain(t *testing.T) {
	w := newWorld(1, 1<<20)
	w.rescue = func(p *piece) bool {
		w.offer(p.trunk, p.branch, p.depth, 1<<10)
		return true
	}
	last := &piece{trunk: 1, depth: 5, cost: 1 << 10}
	w.queue.Offer(last)
	w.run(time.Second)
	if got := stored(w); got != 6 || w.fleet.gap != "" {
		t.Errorf("%d blocks stored, want the 6 of the chain; %s", got, w.fleet.gap)
	}
	w.rescue = func(*piece) bool { return true } // who says so and does nothing is asked once
	w.queue.Offer(&piece{trunk: 2, depth: 5, cost: 1 << 10})
	w.run(time.Second)
	if got := w.ends[spill.Incomplete]; got != 1 || w.queue.Bytes() != 0 {
		t.Errorf("%d blocks dropped as incomplete, %d bytes queued", got, w.queue.Bytes())
	}
}

// WaitRoom is for those who have more to offer than the queue takes: no block is lost, and what is parked does not hold them up.
func TestWaitRoom(t *testing.T) {
	w := newWorld(2, 16<<10)
	w.fleet.sick[1] = errDown
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 400 {
			if !w.queue.WaitRoom(t.Context()) {
				return
			}
			if p := (&piece{trunk: i, cost: 1 << 10}); p.node(2) == 0 || i%10 == 1 {
				w.queue.Offer(p)
			}
		}
	}()
	for open := true; open; {
		select {
		case <-done:
			open = false
		default:
		}
		w.storer.Turn(context.Background(), w.clock)
	}
	w.run(0)
	if got := len(w.fleet.has[0]); got != 200 {
		t.Errorf("%d of the 200 blocks of the healthy node are stored", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if w.queue.WaitRoom(ctx) || w.queue.WaitEmpty(ctx) {
		t.Error("the end of the context is not noticed")
	}
}

// Whatever is offered, refused, lost, late and ended in whatever order: each block ends once, nothing is written before what comes before it,
// the queue keeps its bound; nothing healthy waits longer than twice PauseMax; and when the faults are over, everything that was accepted is
// stored or dropped within as much, and everything that is asked for again is stored.
func TestQueueAndStorer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(1, 4).Draw(rt, "nodes")
		w := newWorld(nodes, int64(rapid.SampledFrom([]int{4, 16, 200}).Draw(rt, "queue"))<<10)
		queued := map[*piece]time.Time{} // when
		offer := func(trunk, branch, n int, known bool) {
			for d := range n {
				p := &piece{trunk: trunk, branch: branch, depth: d, gen: w.gen, cost: 1 << 10}
				if known && w.fleet.there(p) {
					continue
				}
				switch w.queue.Offer(p) {
				case spill.Refused:
					return
				case spill.Queued:
					queued[p] = w.now
				}
			}
		}
		well := make([]time.Time, nodes) // since when each node has been, if it is
		for i := range well {
			well[i] = w.now
		}
		// waits says how long p has been waiting although all nodes that it needs were well.
		waits := func(p *piece, since time.Time) time.Duration {
			for q := *p; q.depth >= 0; q.depth-- {
				n := q.node(nodes)
				if w.fleet.sick[n] != nil || w.fleet.slow[n] {
					return 0
				}
				if since.Before(well[n]) {
					since = well[n]
				}
			}
			return w.now.Sub(since)
		}
		node := func() int { return rapid.IntRange(0, nodes-1).Draw(rt, "node") }
		rt.Repeat(map[string]func(*rapid.T){
			"offer": func(rt *rapid.T) {
				offer(rapid.IntRange(0, 5).Draw(rt, "trunk"), rapid.IntRange(0, 2).Draw(rt, "branch"), rapid.IntRange(1, 6).Draw(rt, "blocks"), false)
			},
			"turn": func(*rapid.T) { w.storer.Turn(context.Background(), w.clock) },
			"time": func(rt *rapid.T) {
				w.run(time.Duration(rapid.IntRange(1, 9000).Draw(rt, "ms")) * time.Millisecond)
				for p, since := range queued {
					if d := waits(p, since); d > 2*spill.PauseMax && w.ended[p] == 0 {
						rt.Fatalf("%+v has waited for %v although nothing that it needs is sick: %v", *p, d, w.fleet.sick)
					}
				}
			},
			"sick": func(rt *rapid.T) {
				n := node()
				if errors.Is(w.fleet.sick[n], spill.ErrNotNow) {
					return // that is of everything or nothing
				}
				w.fleet.sick[n] = rapid.SampledFrom([]error{errDown, errFull, store.ErrFull, context.DeadlineExceeded, errors.New("reset")}).Draw(rt, "err")
			},
			"not now": func(*rapid.T) {
				for i := range nodes {
					w.fleet.sick[i] = spill.ErrNotNow
				}
			},
			"now": func(*rapid.T) {
				for i := range nodes {
					if errors.Is(w.fleet.sick[i], spill.ErrNotNow) {
						w.fleet.sick[i], well[i] = nil, w.now
					}
				}
			},
			"slow": func(rt *rapid.T) { w.fleet.slow[node()] = true },
			"heal": func(rt *rapid.T) {
				n := node()
				if errors.Is(w.fleet.sick[n], spill.ErrNotNow) {
					return
				}
				w.fleet.sick[n], w.fleet.slow[n], well[n] = nil, false, w.now
			},
			"flush": func(rt *rapid.T) { clear(w.fleet.has[node()]) },
			"end": func(*rapid.T) {
				w.gen++
				w.queue.DropIf(spill.Stale, func(*piece) bool { return true })
			},
			"": func(rt *rapid.T) {
				if n := w.queue.Bytes(); n < 0 || n > 200<<10 {
					rt.Fatalf("%d bytes queued", n)
				}
				if w.fleet.gap != "" {
					rt.Fatalf("written: %s", w.fleet.gap)
				}
				for p, n := range w.ended {
					if n != 1 || queued[p].IsZero() && w.ends[spill.Overflow] == 0 {
						rt.Fatalf("%+v ended %d times", *p, n)
					}
				}
			},
		})
		for i := range nodes {
			w.fleet.sick[i], w.fleet.slow[i] = nil, false
		}
		w.run(2 * spill.PauseMax) // a pause that has just begun, and that of the whole
		if n := w.queue.Bytes(); n != 0 {
			rt.Fatalf("%d bytes still queued, %d parked", n, w.queue.Parked())
		}
		for p := range queued {
			if w.ended[p] != 1 {
				rt.Fatalf("%+v ended %d times", *p, w.ended[p])
			}
		}
		for trunk := range 3 { // again, without faults: a short queue takes some rounds
			for range 8 {
				offer(trunk, 1, 6, true)
				w.run(time.Second)
			}
			for d := range 6 {
				if p := (&piece{trunk: trunk, branch: 1, depth: d}); !w.fleet.there(p) {
					rt.Fatalf("%+v is not stored although nothing is sick", p.name())
				}
			}
		}
	})
}

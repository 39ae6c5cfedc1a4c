package tiered_test

import (
	"context"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// stepped is a cache that does nothing by itself: tests decide when fills run, and what happens while a request waits.
type stepped struct {
	*tiered.Cache
	now    time.Time
	tasks  []func()
	onAsk  func() // while a request waits, before what is in the background runs
	onWait func() // after it
}

func newStepped(t *testing.T, remote *memstore.Store) *stepped {
	s := &stepped{now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	s.Cache = newCache(t, remote, func(o *tiered.Options) {
		o.Steps = &tiered.Steps{
			Now: func() time.Time { return s.now },
			Go:  func(task func()) { s.tasks = append(s.tasks, task) },
			Wait: func(done <-chan struct{}) bool {
				if s.onAsk != nil {
					s.onAsk()
				}
				s.run()
				if s.onWait != nil {
					s.onWait()
				}
				select {
				case <-done:
					return true
				default:
					return false
				}
			},
		}
	})
	return s
}

func (s *stepped) run() {
	for len(s.tasks) > 0 {
		task := s.tasks[0]
		s.tasks = s.tasks[1:]
		task()
	}
}

func withAct(v tiered.View, act byte) tiered.View {
	v.Act[0] = act
	return v
}

// Race 2, 15: the fill is committed under the old generation, the generation ends, and only then does the waiting request wake up.
func TestRaceGenerationEndsBetweenCommitAndHandOver(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	writer, c := newStepped(t, remote), newStepped(t, remote)
	v := shared(generation(1, 1))
	writer.SetView(v)
	put(t, writer.Cache, v, 7, 2)
	writer.run()
	c.SetView(v)
	c.onWait = func() { c.SetView(shared(generation(1, 2))) } // a purge
	expect(t, c.Cache, v, 7, 2, 0, 0, tiered.MissEpoch)
}

// Race 15: stopped between the check at hand-over and the use, for longer than the lease.
func TestRacePausedBetweenLeaseCheckAndUse(t *testing.T) {
	c := newStepped(t, memstore.New(memstore.Options{}))
	v := shared(generation(1, 1))
	v.Until, v.Then = c.now.Add(5*time.Second), tiered.AccessNone // strict
	c.SetView(v)
	put(t, c.Cache, v, 7, 2)
	ns, hashes := chainOf(v.Generation, 7, 2)
	s := newSequence(t, testLayout, 0, stamped(t, v.Generation, hashes))
	s.before = func(call string, i int) {
		if call == "place" && i == 1 {
			c.now = v.Until // SIGSTOP … SIGCONT
		}
	}
	out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes}, s)
	if err != nil || out.Hot != 0 || s.have != 0 || out.Miss != tiered.MissUnshared {
		t.Errorf("%+v, %v; want nothing, unshared", out, err)
	}
}

// The lease is over at its end, not a moment later: coordinator.View and tiered.View have to agree.
func TestTheLeaseEndsAtItsEnd(t *testing.T) {
	c := newStepped(t, memstore.New(memstore.Options{}))
	v := shared(generation(1, 1))
	v.Until, v.Then = c.now.Add(time.Second), tiered.AccessNone
	c.SetView(v)
	c.now = v.Until.Add(-1)
	if got := c.View().Access; got != tiered.AccessShared {
		t.Errorf("before the end: %v", got)
	}
	c.now = v.Until
	if got := c.View().Access; got != tiered.AccessNone {
		t.Errorf("at the end: %v", got)
	}
}

// Race 19: an epoch number that was given out twice, because a record was lost together with the memory of it. What was stored under the
// first activation is not served under the second, from either tier.
func TestRaceEpochNumberGivenOutTwice(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newStepped(t, remote), newStepped(t, remote)
	first, second := withAct(shared(generation(1, 5)), 1), withAct(shared(generation(1, 5)), 2)
	a.SetView(first)
	put(t, a.Cache, first, 7, 2)
	a.run()
	b.SetView(second)
	expect(t, b.Cache, second, 7, 2, 0, 0, tiered.MissEpoch)
	if n := b.Stats().BadValues; n != 0 {
		t.Errorf("a late write of an ended activation counts as %d failures of integrity", n)
	}
	a.SetView(second)
	expect(t, a.Cache, second, 7, 2, 0, 0, tiered.MissEpoch) // b has deleted the value
}

// Race 3, 6: a hot block is held while its generation ends, it is evicted, and its memory would be wanted for others. Its bytes stay.
func TestRaceBlockHeldAcrossSwapAndEviction(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	c := newCache(t, remote, func(o *tiered.Options) { o.HotBytes = 64 << 20 })
	v := shared(generation(1, 1))
	c.SetView(v)
	put(t, c, v, 7, 1)
	ns, hashes := chainOf(v.Generation, 7, 1)
	pin := c.Load(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes})
	if pin.Blocks() != 1 {
		t.Fatal("no hit")
	}
	next := shared(generation(2, 1))
	c.SetView(next)
	for seed := range int32(20) { // more than the tier holds: every free slab is used again
		put(t, c, next, 100+seed, 1)
	}
	for p := range testLayout.PartCount() {
		checkStamp(t, pin.Part(0, p), v.Generation, hashes[0], p)
	}
	if pin.Release() {
		t.Error("a block of weights that are gone may still be used")
	}
}

// Race 7: a read that fails half-way leaves bytes of something else in the buffer. They are not served, not even to those who joined.
func TestRaceFailedReadPublishesNothing(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newStepped(t, remote), newStepped(t, remote)
	v := shared(generation(1, 1))
	a.SetView(v)
	b.SetView(v)
	put(t, a.Cache, v, 7, 1)
	a.run()
	ns, hashes := chainOf(v.Generation, 7, 1)
	second := block.Key(v.Identity.Variant(), v.Epoch, hashes[0], 1)
	b.onAsk = func() { // before its fill runs, another request joins it, and the second half of the block is gone
		b.onAsk = nil
		if n, err := remote.Delete(context.Background(), []string{second}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		joined := b.Load(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: gate.Always})
		if joined.Blocks() != 0 {
			t.Error("half a block was served to who joined")
		}
	}
	if p := b.Load(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: gate.Always}); p.Blocks() != 0 {
		t.Error("half a block was served")
	}
	if s := b.Stats(); s.HotBlocks != 0 {
		t.Errorf("%+v", s)
	}
}

// Races 5, 27: a fill and a warm-up that began before a change end after it. Who asks afterwards gets neither.
func TestRaceLateFillAndLateWarmUp(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newStepped(t, remote), newStepped(t, remote)
	old, next := shared(generation(1, 1)), shared(generation(1, 2)) // a purge: the hashes stay the same
	a.SetView(old)
	put(t, a.Cache, old, 7, 2)
	a.run()
	b.SetView(old)
	ns, hashes := chainOf(old.Generation, 7, 2)
	b.onAsk = func() { // its fill has not run yet
		b.onAsk = nil
		b.SetView(next)
		put(t, b.Cache, old, 7, 2) // the warm-up of before
		expect(t, b.Cache, next, 7, 2, 0, 0, tiered.MissCold)
	}
	if out := bring(t, b.Cache, old, ns, hashes, testLayout); out.Remote != 0 || out.Miss != tiered.MissEpoch {
		t.Errorf("the request of before goes on with what was purged: %+v", out)
	}
	b.run()
	expect(t, b.Cache, next, 7, 2, 0, 0, tiered.MissCold)
}

// Race 1: queued under W1, dequeued after the swap to W2. Nothing is stored under either name.
func TestRaceSpillQueuedBeforeASwap(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newStepped(t, remote), newStepped(t, remote)
	old, next := shared(generation(1, 1)), shared(generation(2, 1))
	a.SetView(old)
	put(t, a.Cache, old, 7, 2) // queued: no task has run yet
	a.SetView(next)
	a.run()
	for _, v := range []tiered.View{old, next} {
		b.SetView(v)
		expect(t, b.Cache, v, 7, 2, 0, 0, tiered.MissCold)
	}
}

// A fill that began before a purge, and a request that asks for the same blocks after it: it gets those of its own generation.
func TestRaceFillOfTheGenerationBefore(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newStepped(t, remote), newStepped(t, remote)
	old, next := shared(generation(1, 1)), shared(generation(1, 2)) // the hashes stay the same
	ns, hashes := chainOf(old.Generation, 7, 2)
	for _, v := range []tiered.View{old, next} {
		a.SetView(v)
		for i := range hashes {
			if err := a.Put(v, ns, hashes[:i+1], func(_ block.Part, dst []byte) error { dst[0] = byte(v.Epoch); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		a.run()
	}
	b.SetView(old)
	b.onAsk = func() { // the fill has not run yet
		b.onAsk = nil
		b.SetView(next)
		s := newSequence(t, testLayout, 0, func(i, part int, kv []byte) {
			if kv[0] != byte(next.Epoch) {
				t.Errorf("block %d is of epoch %d, want %d", i, kv[0], next.Epoch)
			}
		})
		out, err := b.Bring(t.Context(), tiered.Lookup{View: next, Namespace: ns, Chain: hashes, Mode: gate.Always}, s)
		if err != nil || out.Remote != 2*testLayout.BlockTokens {
			t.Errorf("%+v, %v; want both blocks", out, err)
		}
	}
	s := newSequence(t, testLayout, 0, func(int, int, []byte) {})
	out, err := b.Bring(t.Context(), tiered.Lookup{View: old, Namespace: ns, Chain: hashes, Mode: gate.Always}, s)
	if err != nil || out.Remote != 0 || out.Miss != tiered.MissEpoch {
		t.Errorf("the request of before: %+v, %v", out, err)
	}
}

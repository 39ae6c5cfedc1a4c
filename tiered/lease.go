package tiered

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
)

// Fill is what a request that misses blocks estimates about them.
type Fill struct {
	Compute time.Duration // to compute them here
	Load    time.Duration // to load them, if they were stored
	RTT     time.Duration // of one question to the remote tier
}

// expected is when whoever begins to compute now will have stored the blocks: storing takes about as long as loading.
func (f Fill) expected() time.Duration { return f.Compute + f.Load }

const (
	// fillLeast is the shortest computation that is worth a claim, and fillPerRTT how many times longer than a question it has to be: the
	// question costs everybody who computes something new.
	fillLeast  = 40 * time.Millisecond
	fillPerRTT = 100
	// fillShare is α again: the blocks have to be here in that part of the time to compute them, or there is no use in looking for them.
	fillShare = 0.7
	// fillIdle is the part of the time to compute them for which a request may wait with its hands in its lap; that much is lost when
	// the other worker dies.
	fillIdle = 0.2
	// leasePause is how long no claims are tried after one has failed, as when the user may not run the commands.
	leasePause = 30 * time.Second
)

// leases is this worker's side of claims on blocks that are being computed. A claim is a hint: whatever happens to it, the worst is work done
// twice, and what is stored is named and checked like everything else.
type leases struct {
	store   store.Leaser // nil for none
	pause   atomic.Int64 // UnixNano until when nothing is claimed
	granted atomic.Int64
	watched atomic.Int64 // claims of others that a request looked out for
	filled  atomic.Int64 // those among them of which blocks came
}

// FillWatch looks out for blocks that another worker is computing.
type FillWatch struct {
	idle   time.Duration
	found  atomic.Int64
	more   chan struct{} // holds a token after found has grown
	cancel context.CancelFunc
	done   chan struct{}
}

// WatchFill is for a request that is about to compute blocks that no tier has. It claims them, so that others know, and returns nil. If another
// worker has claimed them and is so far ahead that its blocks will be here sooner than the caller's own, it returns a watch: the caller waits
// for Idle, then computes, and loads what is Found meanwhile. So nothing is lost but a question of one round trip, and Idle when the other
// worker dies. Close the watch.
func (c *Cache) WatchFill(ctx context.Context, v View, missing []block.Hash, est Fill) *FillWatch {
	if !c.claims(v, missing, est) {
		return nil
	}
	held, ok := c.claim(ctx, v, missing[0], est)
	if !ok || held.Granted {
		return nil
	}
	idle, until, ok := lookOut(held, est)
	if !ok {
		return nil
	}
	c.leases.watched.Add(1)
	w := &FillWatch{idle: idle, more: make(chan struct{}, 1), done: make(chan struct{})}
	ctx, w.cancel = context.WithTimeout(c.ctx, until)
	c.background(func() {
		defer close(w.done)
		c.watch(ctx, w, v, missing, max(2*time.Millisecond, est.RTT, until/64))
	})
	return w
}

// Idle waits until blocks have come, for as long as that is worth while, and returns how many.
func (w *FillWatch) Idle(ctx context.Context) int {
	if w.idle > 0 {
		timer := time.NewTimer(w.idle)
		defer timer.Stop()
		select {
		case <-w.more:
		case <-timer.C:
		case <-w.done:
		case <-ctx.Done():
		}
	}
	return w.Found()
}

// Found returns how many of the missing blocks, from the first on, the remote tier has.
func (w *FillWatch) Found() int { return int(w.found.Load()) }

// Over reports whether no more blocks will be found.
func (w *FillWatch) Over() bool { return closed(w.done) }

// Close ends the watch.
func (w *FillWatch) Close() {
	w.cancel()
	<-w.done
}

// claims reports whether a claim makes sense: others find what is computed here only if it is stored at once.
func (c *Cache) claims(v View, missing []block.Hash, est Fill) bool {
	return c.leases.store != nil && c.opts.FillLease && c.opts.Steps == nil && c.opts.WritePolicy == WriteThrough && len(missing) > 0 &&
		est.Compute >= fillLeast && est.Compute >= fillPerRTT*est.RTT &&
		c.now().UnixNano() >= c.leases.pause.Load() && c.mayShare(v)
}

func (c *Cache) mayShare(v View) bool {
	now := c.View()
	return now.Access == AccessShared && now.Generation == v.Generation && !c.closed.Load()
}

// claim asks for the claim on h, and waits for the answer a fiftieth of the time to compute at most.
func (c *Cache) claim(ctx context.Context, v View, h block.Hash, est Fill) (store.Lease, bool) {
	ctx, cancel := context.WithTimeout(ctx, min(est.Compute/50, c.opts.ProbeTimeout))
	defer cancel()
	key := block.LeaseKey(v.Identity.Variant(), v.Epoch, h)
	expected := min(est.expected(), store.MaxLease)
	held, err := c.leases.store.Lease(ctx, key, strconv.FormatInt(expected.Milliseconds(), 10), leaseTime(expected))
	switch {
	case err == nil && held.Granted:
		c.leases.granted.Add(1)
	case err != nil && ctx.Err() == nil:
		c.leases.pause.Store(c.now().Add(leasePause).UnixNano())
		c.opts.Logger.Warn("no claims on blocks that are being computed for now", "err", err)
	}
	return held, err == nil
}

// leaseTime is how long a claim lasts: twice what is expected, so that one whose holder died ends soon.
func leaseTime(expected time.Duration) time.Duration {
	return min(store.MaxLease, 2*expected+500*time.Millisecond)
}

// lookOut decides whether to look out for the blocks of the holder of a claim, how long to wait with nothing else to do, and when to give
// them up. It is a pure function.
func lookOut(held store.Lease, est Fill) (idle, until time.Duration, ok bool) {
	ms, err := strconv.ParseInt(held.Note, 10, 64)
	if err != nil || ms < 0 || ms > store.MaxLease.Milliseconds() {
		return 0, 0, false // not one of ours
	}
	expected := time.Duration(ms) * time.Millisecond
	age := leaseTime(expected) - held.Left
	left := expected - age
	if age < 0 || left < -expected/2 || float64(max(0, left)+est.Load) > fillShare*float64(est.Compute) {
		return 0, 0, false // of another release, long overdue, or later than what is computed here
	}
	if most := time.Duration(fillIdle * float64(est.Compute)); left < most {
		idle = most
	}
	return idle, est.Compute, true
}

// watch asks again and again how many of missing are there, until all are or ctx ends.
func (c *Cache) watch(ctx context.Context, w *FillWatch, v View, missing []block.Hash, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for had := 0; had < len(missing); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !c.mayShare(v) {
			return
		}
		n, why := c.probe(ctx, v.Generation, missing)
		if why.Degraded() {
			return
		}
		if n > had {
			if had == 0 {
				c.leases.filled.Add(1)
			}
			had = n
			w.found.Store(int64(n))
			select {
			case w.more <- struct{}{}:
			default:
			}
		}
	}
}

package tiered

import (
	"context"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
)

// leasePause is how long no claims are tried after one has failed, as when the user may not run the commands.
const leasePause = 30 * time.Second

// leases is this worker's side of claims on blocks that are being computed. A claim is a hint: whatever happens to it, the worst is work done
// twice, and what is stored is named and checked like everything else.
type leases struct {
	store   store.Leaser // nil for none
	pause   atomic.Int64 // UnixNano until when nothing is claimed
	granted atomic.Int64
	watched atomic.Int64 // claims of others that a request looked out for
	filled  atomic.Int64 // those among them of which blocks came
}

// awaitOthers computes the blocks that no tier has, unless another worker is about to have them: then it takes over what comes of that, and
// computes meanwhile. It returns without having done anything when there is nobody to wait for.
func (b *bringing) awaitOthers(ctx context.Context) error {
	first, end, pre := b.next(), len(b.lookup.Chain), b.prefill()
	if first < b.known || !b.behind.Absent() || !pre.Known() {
		return nil
	}
	work, path := b.work(end), b.c.Path()
	toCompute := func() time.Duration { return gate.Seconds(pre.Seconds(b.sink.Len(), end*b.tokens-b.sink.Len())) }
	w := b.c.claimOrWatch(ctx, b.scope, b.lookup.Chain[first:], gate.Claim{
		Compute: toCompute(), Load: gate.Seconds(path.Seconds(work.TokenBytes * float64(work.End-work.At))), RTT: gate.Seconds(path.RTT),
	})
	if w == nil {
		return nil
	}
	defer w.stop()
	w.pause(ctx)
	for b.next() < end {
		if there := first + w.blocks(); (there-b.next())*b.tokens >= leastTokens || there == end {
			had := b.next()
			b.known = max(b.known, there)
			if err := b.take(ctx, there, b.c.now().Add(toCompute())); err != nil || b.lost != MissNone || b.next() == had {
				return err // it was there and cannot be had: compute
			}
			continue
		}
		if w.over() {
			return nil
		}
		if err := b.chunk(ctx, end, nil); err != nil {
			return err
		}
	}
	return nil
}

// watch looks out for blocks that another worker is computing.
type watch struct {
	idle   time.Duration
	found  atomic.Int64
	more   chan struct{} // holds a token after found has grown
	cancel context.CancelFunc
	done   chan struct{}
}

// claimOrWatch is for a request that is about to compute blocks that no tier has. It claims them, so that others know, and returns nil. If
// another worker has claimed them and is so far ahead that its blocks will be here sooner than the caller's own, it returns a watch: the
// caller pauses, then computes, and loads what was found meanwhile. So nothing is lost but a question of one round trip, and the pause
// when the other worker dies. Stop the watch.
func (c *Cache) claimOrWatch(ctx context.Context, sc scope, missing []block.Hash, est gate.Claim) *watch {
	if !c.claims(&sc, missing, est) {
		return nil
	}
	held, ok := c.claim(ctx, &sc, missing[0], est)
	if !ok || held.Granted {
		return nil
	}
	expected, age, ok := claimed(held)
	if !ok {
		return nil
	}
	idle, until, ok := est.Await(expected, age)
	if !ok {
		return nil
	}
	c.leases.watched.Add(1)
	w := &watch{idle: idle, more: make(chan struct{}, 1), done: make(chan struct{})}
	missing = slices.Clone(missing)
	ctx, w.cancel = context.WithTimeout(c.ctx, until)
	c.background(func() {
		defer close(w.done)
		c.look(ctx, w, sc, missing, max(2*time.Millisecond, est.RTT, until/64))
	})
	return w
}

// pause waits until blocks have come, for as long as that is worth while, and returns how many.
func (w *watch) pause(ctx context.Context) int {
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
	return w.blocks()
}

// blocks returns how many of the missing blocks, from the first on, the remote tier has.
func (w *watch) blocks() int { return int(w.found.Load()) }

// over reports whether no more blocks will be found.
func (w *watch) over() bool { return closed(w.done) }

func (w *watch) stop() {
	w.cancel()
	<-w.done
}

// claims reports whether a claim makes sense: others find what is computed here only if it is stored at once.
func (c *Cache) claims(sc *scope, missing []block.Hash, est gate.Claim) bool {
	return c.leases.store != nil && c.opts.FillLease && c.opts.Steps == nil && c.opts.WritePolicy == WriteThrough && len(missing) > 0 &&
		est.Pays() && c.now().UnixNano() >= c.leases.pause.Load() && c.mayShare(sc)
}

func (c *Cache) mayShare(sc *scope) bool { return c.allows(sc, AccessShared) && !c.closed.Load() }

// claim asks for the claim on h, and waits for the answer a fiftieth of the time to compute at most.
func (c *Cache) claim(ctx context.Context, sc *scope, h block.Hash, est gate.Claim) (store.Lease, bool) {
	ctx, cancel := context.WithTimeout(ctx, min(est.Compute/50, c.opts.ProbeTimeout))
	defer cancel()
	key := block.LeaseKey(sc.gen.Identity.Variant(), sc.gen.Epoch, h)
	expected := min(est.Expected(), store.MaxLease)
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

// claimed reads a claim: when its holder means to have stored the blocks, counted from the claim, and how old the claim is.
func claimed(held store.Lease) (expected, age time.Duration, ok bool) {
	ms, err := strconv.ParseInt(held.Note, 10, 64)
	if err != nil || ms < 0 || ms > store.MaxLease.Milliseconds() {
		return 0, 0, false // not one of ours
	}
	expected = time.Duration(ms) * time.Millisecond
	return expected, leaseTime(expected) - held.Left, true
}

// look asks again and again how many of missing are there, until all are or ctx ends.
func (c *Cache) look(ctx context.Context, w *watch, sc scope, missing []block.Hash, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for had := 0; had < len(missing); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n, why := c.probe(ctx, &sc, missing)
		if !why.Absent() {
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

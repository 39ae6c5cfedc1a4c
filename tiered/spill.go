package tiered

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/tiered/internal/spill"
)

// spiller is what a cache knows of the way to the remote tier: the queue, the storer, and how far what was stored is still there.
type spiller struct {
	queue  *spill.Queue[*entry]
	storer *spill.Storer[*entry]
	wake   chan struct{} // holds a token while there may be work
	losses atomic.Uint32 // how often the remote tier was found, or has to be supposed, to have lost blocks
	trust  time.Time     // when that was supposed last; the storer's
	guard  witnesses
	again  resharing

	busy bool // with Options.Steps: a turn is under way
}

// spillProbes is how many round trips there are at once to learn what the remote tier has of a batch.
const spillProbes = 4

func (c *Cache) newSpiller() {
	s := &c.spill
	s.wake = make(chan struct{}, 1)
	s.again.init()
	s.guard.init(c.opts.Steps != nil)
	s.queue = spill.NewQueue(spill.QueueOptions[*entry]{
		MaxBytes: c.opts.SpillBytes, Valid: c.storable, Ended: c.spilled, Wake: c.wakeSpiller,
	})
	probes := spillProbes
	if c.opts.Steps != nil {
		probes = 1
	}
	s.storer = spill.NewStorer(spill.Options[*entry]{
		Queue: s.queue, Remote: remoteTier{c}, Timeout: c.opts.SpillTimeout, Probes: probes, Rescue: c.rescue, Logger: c.opts.Logger,
	})
	if c.remote != nil && c.opts.Steps == nil {
		c.wg.Go(c.spillLoop)
	}
}

// Hash implements spill.Block, as do the following.
func (e *entry) Hash() block.Hash   { return e.hash }
func (e *entry) Before() block.Hash { return e.parent }
func (e *entry) Depth() int         { return e.depth }
func (e *entry) Cost() int64        { return e.cost() }

// Twin reports whether e and o, of the same name, are of one generation and behind one purge of their tenant.
func (e *entry) Twin(o *entry) bool { return e.gen == o.gen && e.cut == o.cut }

// storable reports whether e may be stored now: a put that was under way across a change may queue its block after the queue was emptied.
func (c *Cache) storable(e *entry) bool {
	v := c.view.Load()
	return v != nil && v.Generation == e.gen && v.Cuts[e.ns] == e.cut || labelAtDequeue()
}

// sharedNow is the state of a block that has just been seen in the remote tier.
func (c *Cache) sharedNow() uint32 { return shared + c.spill.losses.Load() }

// offer hands e to the storer unless it is queued or stored already. It never blocks, and reports whether the chain is stored or queued up to e:
// if not, there is no use in offering what follows.
func (c *Cache) offer(e *entry) bool {
	s := e.share.Load()
	if s == queued || s == c.sharedNow() || !e.share.CompareAndSwap(s, queued) {
		return true
	}
	switch c.spill.queue.Offer(e.retain()) {
	case spill.Refused:
		return false
	case spill.Twin: // computed a second time while the first was on its way: in doubt until that has arrived
		e.share.Store(unshared)
		e.release()
	}
	return true
}

// offerNew is offer for a block that was just computed, if its chain can be complete in the remote tier.
func (c *Cache) offerNew(e *entry) {
	if e.depth > 0 && !c.spill.queue.Holds(e.parent, e) {
		// Not hot means not known: the storer asks. Hot and not shared means that it was dropped, or never offered.
		if p := c.hot.peek(&e.gen, e.parent); p != nil && p.share.Load() == unshared {
			c.stats.spillDrops[spill.Incomplete-spill.FirstDrop].Add(1)
			return
		}
	}
	c.offer(e)
}

// reused takes note that a request has found run in the hot tier, blocks that follow each other. It hands over what an outage, a full queue or
// the policy kept from being stored, and what the remote tier is supposed to have lost, at a bounded rate.
func (c *Cache) reused(run []*entry) {
	known, offering := c.sharedNow(), c.opts.WritePolicy != WriteOnEvict
	for _, e := range run {
		if !e.used.Load() { // a write would take the line from the other readers
			e.used.Store(true)
		}
		if s := e.share.Load(); offering && s != known && s != queued {
			offering = (s == unshared || c.spill.again.allow(c.now(), e.cost())) && c.offer(e)
		}
	}
}

// offerEvicted hands over a block that leaves the hot tier, behind those before it in its chain that have not been stored: the last blocks
// of a chain leave first.
func (c *Cache) offerEvicted(e *entry) {
	known := c.sharedNow()
	if e.share.Load() >= known {
		return
	}
	if !c.offerChain(c.hot.ancestors(e, func(p *entry) bool { return p.share.Load() != known })) {
		c.stats.spillDrops[spill.Incomplete-spill.FirstDrop].Add(1)
		return
	}
	c.offer(e)
}

// offerChain hands over blocks that come before each other, the last first, and lets go of them. It reports whether all are stored or queued.
func (c *Cache) offerChain(nearestFirst []*entry) bool {
	whole := true
	for _, p := range slices.Backward(nearestFirst) {
		whole = whole && c.offer(p)
		p.release()
	}
	return whole
}

// rescue offers what comes before e in its chain and is hot: the remote tier lacks the block before e, whatever this worker believed. Only this
// chain is in doubt: where a tier evicts all the time, that happens all the time. Whether everything is lost, witnesses say.
func (c *Cache) rescue(e *entry) bool {
	chain := c.hot.ancestors(e, func(*entry) bool { return true })
	for _, p := range chain {
		if s := p.share.Load(); s >= shared {
			p.share.CompareAndSwap(s, unshared)
		}
	}
	return len(chain) > 0 && c.offerChain(chain)
}

// spilled is told what became of a block in the queue.
func (c *Cache) spilled(e *entry, why spill.End) {
	switch why {
	case spill.Stored, spill.Had:
		if why == spill.Stored {
			c.tenants.stored(e.ns, e.cost()-entryOverhead)
			c.fates.stored(e, c.now())
			c.stats.spilled.Add(1)
		} else {
			c.stats.skipped.Add(1)
		}
		e.share.Store(c.sharedNow())
		c.spill.guard.add(&e.gen, e.hash, len(e.frames), c.now())
	default:
		c.stats.spillDrops[why-spill.FirstDrop].Add(1)
		e.share.Store(unshared)
	}
	e.release()
}

// wakeSpiller tells the storer that there is work.
func (c *Cache) wakeSpiller() {
	if c.opts.Steps != nil {
		c.opts.Steps.Go(c.stepSpill)
		return
	}
	select {
	case c.spill.wake <- struct{}{}:
	default:
	}
}

// spillLoop stores queued blocks until the cache is closed.
func (c *Cache) spillLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for c.ctx.Err() == nil {
		wait := c.spillTurn()
		if wait == 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-c.spill.wake:
		case <-c.ctx.Done():
		}
	}
}

// spillTurn looks after everything on the way to the remote tier that is due, and returns when something will be next, if no block is offered
// before.
func (c *Cache) spillTurn() time.Duration {
	c.doubt()
	wait := min(c.watchOver(), c.reshare())
	if next := c.spill.storer.Turn(c.ctx, c.now); next >= 0 {
		wait = min(wait, next)
	}
	return wait
}

// stepSpill is one turn of spillLoop. There is one storer only, as there.
func (c *Cache) stepSpill() {
	s := &c.spill
	if s.busy {
		return
	}
	s.busy = true
	c.spillTurn()
	s.busy = false
	if s.queue.Bytes() > 0 || s.again.pending() {
		c.opts.Steps.Go(c.stepSpill)
	}
}

// doubt ends this worker's belief in what was stored long ago: values expire, and what is hot here for longer has to be stored again.
func (c *Cache) doubt() {
	if now := c.now(); now.Sub(c.spill.trust) > c.opts.TTL/2 {
		if !c.spill.trust.IsZero() {
			c.spill.losses.Add(1)
		}
		c.spill.trust = now
	}
}

// remoteTier is the remote tier as the storer sees it.
type remoteTier struct{ *Cache }

var _ spill.Remote[*entry] = remoteTier{}

// ask is nil while the remote tier may be used.
func (r remoteTier) ask() error {
	if r.View().Access != AccessShared {
		return fmt.Errorf("%w: no lease on the epoch", spill.ErrNotNow)
	}
	return nil
}

// blameless tells apart what nobody was asked.
func blameless(err error) error {
	if errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrNode) {
		return fmt.Errorf("%w: %w", spill.ErrNotNow, err)
	}
	return err
}

// Has implements spill.Remote: a block is there if all its parts are.
func (r remoteTier) Has(ctx context.Context, run spill.Run[*entry]) (int, error) {
	parts := r.format.Layout().PartCount()
	hashes := make([]block.Hash, 0, len(run.Blocks)+1)
	if run.Parent {
		hashes = append(hashes, run.Before)
	}
	for _, e := range run.Blocks {
		hashes = append(hashes, e.hash)
	}
	keys := r.keys(&run.Blocks[0].gen, hashes)
	if err := r.ask(); err != nil {
		return 0, err
	}
	n, err := r.remote.Lead(ctx, keys)
	return n / parts, blameless(err)
}

// Write implements spill.Remote: a block is stored if all its parts are. If its generation ends during the write, it lands under an address that
// nobody reads any more.
func (r remoteTier) Write(ctx context.Context, blocks []*entry) []error {
	items := r.link.items(r.format, r.opts.Encoding, blocks)
	items = r.relabelled(items, blocks)
	parts := len(items) / len(blocks)
	errs := make([]error, len(blocks))
	if err := r.ask(); err != nil { // the lease may have ended since the remote tier was asked
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	start := time.Now()
	err := r.remote.Put(ctx, items, r.opts.TTL)
	if err == nil {
		r.link.measured(items, time.Since(start))
		return nil
	}
	for i := range items {
		if err := store.ErrorOf(err, i); err != nil && errs[i/parts] == nil {
			errs[i/parts] = blameless(err)
		}
	}
	return errs
}

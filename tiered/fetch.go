package tiered

import (
	"context"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// Fetch is one request's walk along the chain of its prompt. Call Next until it returns false, then Close:
//
//	f := cache.Fetch(ctx, view, ns, hashes)
//	defer f.Close()
//	for f.Next(ctx) {
//		use f.Part(0), f.Part(1), …
//	}
//
// It is not safe for concurrent use.
type Fetch struct {
	c        *Cache
	view     View
	ns       block.Digest
	want     int
	hot      []*entry
	fills    []*fill
	rest     []block.Hash // what the remote tier has behind fills, for which there was no room yet
	released int          // fills given back since the last were begun
	why      Reason       // why there is nothing after hot, fills and rest
	deadline time.Time

	served int
	cur    *entry
	tier   Tier
	tiers  [tiers]int
	closed bool
}

// Fetch finds the longest run of cached blocks at the front of hashes, the chain of a prompt in namespace ns. Blocks of the hot tier are
// pinned at once; for the rest the remote tier is asked, in one round trip, how many follow without a gap, and these start
// to arrive in the background: as many as fit Options.FillBytes, and others as those are used up. It returns after that round trip, or after
// Options.ProbeTimeout. The hashes must not change before Close.
func (c *Cache) Fetch(ctx context.Context, v View, ns block.Digest, hashes []block.Hash) *Fetch {
	f := &Fetch{hot: make([]*entry, 0, len(hashes))}
	c.FetchInto(ctx, f, v, ns, hashes)
	return f
}

// FetchInto is Fetch in memory that is used again: f is the zero Fetch or one that was closed. A walk over hot blocks then allocates nothing.
func (c *Cache) FetchInto(ctx context.Context, f *Fetch, v View, ns block.Digest, hashes []block.Hash) {
	*f = Fetch{c: c, view: v, ns: ns, want: len(hashes), hot: f.hot[:0], fills: f.fills[:0]}
	if len(hashes) == 0 {
		return
	}
	if now := c.View(); now.Generation != v.Generation || now.Cuts[ns] != v.Cuts[ns] {
		f.why = MissStale
		return
	} else if f.view.Access = min(v.Access, now.Access); f.view.Access == AccessNone {
		f.why = MissUnshared
		return
	}
	remote := c.remote != nil && f.view.Access == AccessShared && !c.closed.Load()
	f.hot = c.hot.run(f.hot, &f.view.Generation, hashes)
	if remote && c.opts.WritePolicy != WriteOnEvict {
		c.offerRun(f.hot)
	}
	rest := hashes[len(f.hot):]
	switch {
	case len(rest) == 0:
	case !remote:
		f.why = MissUnshared
	default:
		f.startFills(ctx, rest)
	}
}

func (f *Fetch) startFills(ctx context.Context, rest []block.Hash) {
	c := f.c
	f.deadline = c.now().Add(c.opts.FetchTimeout)
	found, why := c.probe(ctx, f.view.Generation, rest)
	if found < len(rest) {
		f.why = why
	}
	f.rest = rest[:found]
	f.more()
}

// more begins the fills that there is room for. Fills of a long prompt go on in windows: whenever a quarter of what may be under way has
// been used up, its room is filled again, so that the wire never waits for the consumer and the bound holds. Nobody ever waits for
// room while holding some: whoever gets none and has nothing left ends with MissBudget.
func (f *Fetch) more() {
	f.released = 0
	had := len(f.fills)
	var mine []*fill
	f.fills, mine = f.c.join(f.fills, f.view.Generation, f.ns, f.view.Cuts[f.ns], f.rest, len(f.hot)+had)
	f.rest = f.rest[len(f.fills)-had:]
	if len(mine) > 0 {
		c := f.c
		c.background(func() { c.lead(mine, c.opts.FetchTimeout) })
	}
}

// probe asks how many of hashes the remote tier has from the front, complete with all their parts.
func (c *Cache) probe(ctx context.Context, g Generation, hashes []block.Hash) (int, Reason) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.ProbeTimeout)
	defer cancel()
	parts, variant := c.format.Layout().PartCount(), g.Identity.Variant()
	keys := make([]string, 0, len(hashes)*parts)
	for _, h := range hashes {
		for p := range parts {
			keys = append(keys, block.Key(variant, g.Epoch, h, p))
		}
	}
	n, err := c.remote.Lead(ctx, keys)
	if err != nil {
		return 0, reasonOf(err)
	}
	return n / parts, MissCold
}

// Next moves to the next block of the chain and reports whether there is one. It waits for a remote block until it has arrived, ctx ends, or
// the time for fetching is over. The block before must not be used any more.
func (f *Fetch) Next(ctx context.Context) bool {
	f.letGo()
	if f.closed {
		return false
	}
	if f.served == len(f.hot)+len(f.fills) && len(f.rest) == 0 {
		return false
	}
	if len(f.rest) > 0 && (f.released >= f.c.refill || f.served == len(f.hot)+len(f.fills)) {
		if f.more(); f.served == len(f.hot)+len(f.fills) {
			return f.end(MissBudget)
		}
	}
	var next *entry
	if f.served < len(f.hot) {
		next, f.tier = f.hot[f.served], Hot
	} else {
		fl := f.fills[f.served-len(f.hot)]
		if why := f.wait(ctx, fl); why != MissNone {
			return f.end(why)
		}
		next, f.tier = fl.block, Remote
	}
	// After the wait, not before it: the generation may have ended between the fill's commit and this.
	if !f.c.allows(&f.view.Generation, f.ns, f.view.Cuts[f.ns], AccessHot) && !mutation.Is(mutation.NoCheckAtHandOver) {
		return f.end(MissStale)
	}
	f.cur = next
	f.served++
	f.tiers[f.tier]++
	return true
}

func (f *Fetch) wait(ctx context.Context, fl *fill) Reason {
	select {
	case <-fl.done:
		return fl.reason
	default:
	}
	if steps := f.c.opts.Steps; steps != nil {
		if steps.Wait(fl.done) {
			return fl.reason
		}
		return MissDeadline
	}
	timer := time.NewTimer(time.Until(f.deadline))
	defer timer.Stop()
	select {
	case <-fl.done:
		return fl.reason
	case <-ctx.Done():
		return MissDeadline
	case <-timer.C:
		return MissDeadline
	}
}

// Current reports whether the current block may still be used: its generation is the current one and access has not ended since Next. Ask
// after the block was placed and before it counts: a process can be stopped for a minute between Next and that.
func (f *Fetch) Current() bool {
	return f.cur != nil && (f.c.allows(&f.view.Generation, f.ns, f.view.Cuts[f.ns], AccessHot) || mutation.Is(mutation.NoRecheck))
}

// Lose gives the current block back as a miss and ends the walk: for a block of which Current said no.
func (f *Fetch) Lose() {
	if f.cur == nil {
		return
	}
	f.releaseFrom(f.served)
	f.letGo()
	f.served--
	f.tiers[f.tier]--
	f.cutTo(f.served, MissStale)
}

// Part returns the payload of part p of the current block: read-only, valid until the next call of Next or Close.
func (f *Fetch) Part(p int) []byte { return f.cur.places[p] }

// Tier says where the current block was found.
func (f *Fetch) Tier() Tier { return f.tier }

// Blocks returns how many blocks of a tier were handed out so far.
func (f *Fetch) Blocks(t Tier) int { return f.tiers[t] }

// Miss says why the walk ended before the last block; MissNone if it did not.
func (f *Fetch) Miss() Reason {
	if f.served == f.want {
		return MissNone
	}
	return f.why
}

// end stops the walk: a gap in the chain makes everything behind it useless to this request.
func (f *Fetch) end(why Reason) bool {
	f.releaseFrom(f.served)
	f.cutTo(f.served, why)
	return false
}

func (f *Fetch) cutTo(n int, why Reason) {
	f.why = why
	f.hot, f.fills, f.rest = f.hot[:min(n, len(f.hot))], f.fills[:max(0, n-len(f.hot))], nil
}

// letGo gives back the current block.
func (f *Fetch) letGo() {
	if f.cur == nil {
		return
	}
	if i := f.served - 1; i < len(f.hot) {
		f.hot[i].release()
	} else {
		f.c.leave(f.fills[i-len(f.hot)])
		f.released++
	}
	f.cur = nil
}

func (f *Fetch) releaseFrom(i int) {
	for ; i < len(f.hot); i++ {
		f.hot[i].release()
	}
	for i -= len(f.hot); i < len(f.fills); i++ {
		f.c.leave(f.fills[i])
	}
}

// Close gives back every block that was not handed out and counts what was found and what was missed. Calling it again does nothing.
func (f *Fetch) Close() {
	if f.closed {
		return
	}
	f.letGo()
	f.releaseFrom(f.served)
	f.closed, f.rest = true, nil
	clear(f.hot) // a Fetch that is used again later must not keep blocks alive
	clear(f.fills)
	f.c.stats.count(f)
	if missed := f.want - f.served; missed > 0 {
		f.c.stats.misses[f.Miss()].Add(int64(missed))
	}
}

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
	hashes   []block.Hash // all that was asked for
	first    int          // blocks of the chain before them
	hot      []*entry
	fills    []*fill
	rest     []block.Hash // what the remote tier has behind fills, for which there was no room yet
	released int          // fills given back since the last were begun
	why      Reason       // why there is nothing after hot, fills and rest
	deadline time.Time
	back     *Back // what is read from the other end

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
	return c.FetchFrom(ctx, v, ns, hashes, 0)
}

// FetchFrom is Fetch for the blocks of a chain from first on: the engine has those before them itself.
func (c *Cache) FetchFrom(ctx context.Context, v View, ns block.Digest, chain []block.Hash, first int) *Fetch {
	f := &Fetch{hot: make([]*entry, 0, len(chain)-first)}
	if c.begin(f, v, ns, chain, first) {
		f.startFills(ctx, f.hashes[len(f.hot):])
	}
	return f
}

// FetchInto is Fetch in memory that is used again: f is the zero Fetch or one that was closed. A walk over hot blocks then allocates nothing.
func (c *Cache) FetchInto(ctx context.Context, f *Fetch, v View, ns block.Digest, hashes []block.Hash) {
	if c.begin(f, v, ns, hashes, 0) {
		f.startFills(ctx, hashes[len(f.hot):])
	}
}

// FetchHot is FetchFrom without the remote tier: the walk is over hot blocks only, and does not wait. Back reads what follows them.
func (c *Cache) FetchHot(v View, ns block.Digest, chain []block.Hash, first int) *Fetch {
	f := &Fetch{hot: make([]*entry, 0, len(chain)-first)}
	if c.begin(f, v, ns, chain, first) {
		f.why = MissGate // unless the caller asks for more
		f.back = &Back{f: f, from: len(f.hot), end: len(f.hot), low: len(f.hot)}
	}
	return f
}

// begin pins the hot blocks at the front, and reports whether the remote tier may have more that is wanted.
func (c *Cache) begin(f *Fetch, v View, ns block.Digest, chain []block.Hash, first int) (more bool) {
	hashes := chain[first:]
	*f = Fetch{c: c, view: v, ns: ns, hashes: hashes, first: first, hot: f.hot[:0], fills: f.fills[:0]}
	if len(hashes) == 0 {
		return false
	}
	now := c.View()
	if f.why = differs(now, v.Generation, ns, v.Cuts[ns]); f.why != MissNone {
		return false
	} else if f.view.Access = min(v.Access, now.Access); f.view.Access == AccessNone {
		f.why = MissUnshared
		return false
	}
	remote := c.remote != nil && f.view.Access == AccessShared && !c.closed.Load()
	f.hot = c.hot.run(f.hot, &f.view.Generation, hashes)
	if remote && c.opts.WritePolicy != WriteOnEvict {
		var before block.Hash
		if first > 0 {
			before = chain[first-1]
		}
		c.offerRun(before, f.hot)
	}
	if len(f.hot) < len(hashes) && !remote {
		f.why = MissUnshared
	}
	return len(f.hot) < len(hashes) && remote
}

func (f *Fetch) startFills(ctx context.Context, rest []block.Hash) {
	c := f.c
	f.deadline = c.now().Add(c.opts.FetchTimeout)
	found, why := c.probe(ctx, f.view.Generation, rest)
	if found < len(rest) {
		f.why = c.whyAbsent(why, rest[found], &f.view.Generation)
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
	f.fills, mine = f.c.join(f.fills, f.view.Generation, f.ns, f.view.Cuts[f.ns], f.rest, f.first+len(f.hot)+had, 1)
	f.rest = f.rest[len(f.fills)-had:]
	if len(mine) > 0 {
		c := f.c
		c.background(func() { c.reads.read(c.lead(mine, len(mine))) })
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
	start := c.now()
	n, err := c.remote.Lead(ctx, keys)
	switch {
	case err == nil:
		c.reads.asked(c.now().Sub(start))
	case reasonOf(err) == MissDeadline:
		c.reads.asked(c.now().Sub(start)) // at least
		return n / parts, MissDeadline
	default:
		return n / parts, reasonOf(err) // one node of several may be sick: the chain ends at its first block
	}
	if n < len(keys) && n%parts > 0 {
		return n / parts, MissIncomplete
	}
	return n / parts, MissCold
}

// whyAbsent refines why a block is not stored by what this worker remembers of it.
func (c *Cache) whyAbsent(why Reason, hash block.Hash, g *Generation) Reason {
	if why != MissCold {
		return why
	}
	return c.fates.of(hash, g, c.now())
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
		return f.end(f.lost())
	}
	f.cur = next
	f.served++
	f.tiers[f.tier]++
	return true
}

func (f *Fetch) wait(ctx context.Context, fl *fill) Reason {
	if !f.c.await(ctx, fl.done, f.deadline.Sub(f.c.now())) {
		return MissDeadline
	}
	return fl.reason
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
	f.cutTo(f.served, f.lost())
}

// lost says why K/V of the walk's generation may not be used any more.
func (f *Fetch) lost() Reason { return f.c.lost(&f.view.Generation, f.ns, f.view.Cuts[f.ns]) }

// Part returns the payload of part p of the current block: read-only, valid until the next call of Next or Close.
func (f *Fetch) Part(p int) []byte { return f.cur.places[p] }

// Tier says where the current block was found.
func (f *Fetch) Tier() Tier { return f.tier }

// Blocks returns how many blocks of a tier were handed out so far.
func (f *Fetch) Blocks(t Tier) int { return f.tiers[t] }

// Miss says why the walk ended before the last block; MissNone if it did not.
func (f *Fetch) Miss() Reason {
	switch {
	case f.back != nil:
		return f.back.miss()
	case f.served == len(f.hashes):
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
	if f.back != nil {
		f.back.stop()
	}
	clear(f.hot) // a Fetch that is used again later must not keep blocks alive
	clear(f.fills)
	f.c.stats.count(f)
	switch {
	case f.back != nil:
		f.back.countMisses()
	case f.served < len(f.hashes):
		f.c.countMisses(f.hashes[f.served:], f.why, &f.view.Generation)
	}
}

// countMisses counts blocks of a chain that were not served. Behind one that is not stored, each has its own reason.
func (c *Cache) countMisses(hashes []block.Hash, why Reason, g *Generation) {
	if !why.Absent() {
		c.stats.misses[why].Add(int64(len(hashes)))
		return
	}
	c.stats.misses[why].Add(1)
	now := c.now()
	for _, h := range hashes[1:] {
		c.stats.misses[c.fates.of(h, g, now)].Add(1)
	}
}

package tiered

import (
	"context"
	"time"

	"github.com/kvtier/kvtier/block"
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
	why      Reason // why there is nothing after hot and fills
	deadline time.Time

	served int
	cur    *entry
	tier   Tier
	tiers  [tiers]int
	closed bool
}

// Fetch finds the longest run of cached blocks at the front of hashes, the chain of a prompt in namespace ns. Blocks of the hot tier are
// pinned at once; for the rest the remote tier is asked, in one round trip, how many follow without a gap, and these start
// to arrive in the background. It returns after that round trip, or after Options.ProbeTimeout.
func (c *Cache) Fetch(ctx context.Context, v View, ns block.Digest, hashes []block.Hash) *Fetch {
	f := &Fetch{c: c, view: v, ns: ns, want: len(hashes), why: MissNone}
	c.stats.lookups.Add(int64(len(hashes)))
	if len(hashes) == 0 {
		return f
	}
	if now := c.View(); now.Generation != v.Generation || now.Cuts[ns] != v.Cuts[ns] {
		f.why = MissStale
		return f
	} else if f.view.Access = min(v.Access, now.Access); f.view.Access == AccessNone {
		f.why = MissUnshared
		return f
	}
	remote := c.remote != nil && f.view.Access == AccessShared && !c.closed.Load()
	f.hot = c.hot.run(make([]*entry, 0, len(hashes)), v.Generation, hashes)
	if remote && c.opts.WritePolicy == WriteThrough {
		for _, e := range f.hot { // what an outage kept from being stored
			c.spill.offer(e)
		}
	}
	rest := hashes[len(f.hot):]
	switch {
	case len(rest) == 0:
	case !remote:
		f.why = MissUnshared
	default:
		f.startFills(ctx, rest)
	}
	return f
}

func (f *Fetch) startFills(ctx context.Context, rest []block.Hash) {
	c := f.c
	start := time.Now()
	f.deadline = start.Add(c.opts.FetchTimeout)
	found, why := c.probe(ctx, f.view.Generation, rest)
	if found < len(rest) {
		f.why = why
	}
	all, mine, why := c.join(f.view.Generation, f.ns, f.view.Cuts[f.ns], rest[:found], len(f.hot))
	f.fills = all
	if why != MissNone {
		f.why = why
	}
	if len(mine) > 0 {
		c.wg.Go(func() { c.lead(mine, c.opts.FetchTimeout) })
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
	if f.closed || f.served == len(f.hot)+len(f.fills) {
		return false
	}
	if !f.c.allows(f.view.Generation, f.ns, f.view.Cuts[f.ns], AccessHot) {
		return f.end(MissStale)
	}
	if f.served < len(f.hot) {
		f.cur, f.tier = f.hot[f.served], Hot
	} else {
		fl := f.fills[f.served-len(f.hot)]
		if why := f.wait(ctx, fl); why != MissNone {
			return f.end(why)
		}
		f.cur, f.tier = fl.block, Remote
	}
	f.served++
	f.tiers[f.tier]++
	f.c.stats.hits[f.tier].Add(1)
	return true
}

func (f *Fetch) wait(ctx context.Context, fl *fill) Reason {
	select {
	case <-fl.done:
		return fl.reason
	default:
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
	f.why = why
	f.releaseFrom(f.served)
	f.hot, f.fills = f.hot[:min(f.served, len(f.hot))], f.fills[:max(0, f.served-len(f.hot))]
	return false
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

// Close gives back every block that was not handed out and counts what was missed. Calling it again does nothing.
func (f *Fetch) Close() {
	if f.closed {
		return
	}
	f.letGo()
	f.releaseFrom(f.served)
	f.closed = true
	if missed := f.want - f.served; missed > 0 {
		f.c.stats.misses[f.Miss()].Add(int64(missed))
	}
}

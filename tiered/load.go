package tiered

import (
	"cmp"
	"context"

	"github.com/kvtier/kvtier/gate"
)

// Pin is a run of blocks of one chain, held where they lie in memory, for callers who have no Sink: they copy what they want, and use the copy
// only if Release says so. It is not safe for concurrent use.
type Pin struct {
	c      *Cache
	scope  scope
	first  int
	blocks []*entry
	tiers  [tiers]int
	miss   Reason
}

// Load pins the run of blocks of l that follows l.Held: what is hot, and, unless l.Mode is gate.Never, what the remote tier has behind that, for
// which it waits until ctx ends or l.Wait is over. A block that does not come ends the run. It never fails: a run may be empty.
// Release the Pin.
func (c *Cache) Load(ctx context.Context, l Lookup) *Pin {
	p := &Pin{c: c, scope: l.scope(), first: l.Held}
	p.miss = p.fill(ctx, &l)
	rest := l.Chain[min(len(l.Chain), l.Held+len(p.blocks)):]
	c.stats.count(c.shards.Add(1), len(p.blocks)+len(rest), p.tiers)
	for i, h := range rest {
		why := p.miss
		if why.Absent() && i > 0 {
			why = c.fates.of(h, &p.scope.gen, c.now())
		}
		c.stats.misses[why].Add(1)
	}
	return p
}

// fill pins what there is, and says why no more.
func (p *Pin) fill(ctx context.Context, l *Lookup) Reason {
	c := p.c
	access, why := c.access(l)
	if why != MissNone || l.Held >= len(l.Chain) {
		return why
	}
	p.blocks = c.takeHot(nil, l, access, l.Held)
	p.tiers[Hot] = len(p.blocks)
	from := l.Held + len(p.blocks)
	switch {
	case from == len(l.Chain):
		return MissNone
	case access != AccessShared:
		return MissUnshared
	case l.Mode == gate.Never:
		return MissGate
	}
	until := c.now().Add(cmp.Or(l.Wait, c.opts.FetchTimeout))
	found, why := c.probe(ctx, &p.scope, l.Chain[from:])
	end := from + found
	if end == len(l.Chain) {
		why = MissNone
	} else if why == MissCold {
		why = c.fates.of(l.Chain[end], &p.scope.gen, c.now())
	}
	r := c.read(l, from, end, until)
	defer r.stop()
	for range found {
		_, e, what, reason := r.next(ctx, until.Sub(c.now()))
		if what != arrived {
			return reason
		}
		p.blocks = append(p.blocks, e.retain())
		p.tiers[Remote]++
	}
	return why
}

// takeHot appends to dst the run of hot blocks of l's chain from first on, with a reference each, and offers to the remote tier what it lacks.
func (c *Cache) takeHot(dst []*entry, l *Lookup, access Access, first int) []*entry {
	had := len(dst)
	dst = c.hot.run(dst, &l.View.Generation, l.Chain[first:], !l.Passing)
	if !l.Passing && access == AccessShared {
		c.reused(dst[had:])
	}
	return dst
}

// Blocks is how many blocks of the chain are pinned.
func (p *Pin) Blocks() int { return len(p.blocks) }

// Part returns the payload of part part of the i-th pinned block: read-only, valid until Release.
func (p *Pin) Part(i, part int) []byte { return p.blocks[i].places[part] }

// Found returns how many of the blocks came from a tier.
func (p *Pin) Found(t Tier) int { return p.tiers[t] }

// Miss says why the run ended before the end of the chain; MissNone if it did not.
func (p *Pin) Miss() Reason { return p.miss }

// Release gives the blocks back, and reports whether what was copied of them may be used: their generation has been the current one from Load
// until now, and access has not ended. If not, the copy must not be used. Calling it again does nothing and says no.
func (p *Pin) Release() (current bool) {
	current = p.c.allows(&p.scope, AccessHot) && len(p.blocks) > 0
	for _, e := range p.blocks {
		e.release()
	}
	p.blocks = nil
	return current
}

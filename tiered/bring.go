package tiered

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
)

// Bring brings the K/V of a prompt's blocks into s as fast as that can be had: what is hot at once; of what only the remote tier has, as much as
// pays, while s computes. It never waits for longer than computing is estimated to take (with gate.Always, than the time-outs). What it
// leaves, no tier has in time: the caller computes it. An error is the sink's or the context's; whatever is wrong with the cache is a miss.
//
// K/V is placed as it arrives and counts only after one more comparison: see count. If the cache's generation, or the tenant's entries, end
// meanwhile, what was placed is left behind and is never used.
func (c *Cache) Bring(ctx context.Context, l Lookup, s Sink) (Outcome, error) {
	b := c.brings.Get().(*bringing)
	err := b.begin(l, s)
	if err == nil {
		err = b.run(ctx)
	}
	out := b.end()
	c.brings.Put(b)
	return out, err
}

// bringing is the state of a Bring. Blocks are numbered from the root of the chain.
type bringing struct {
	c      *Cache
	shard  uintptr // in which it counts
	layout block.Layout
	tokens int // of a block

	lookup  Lookup
	scope   scope
	sink    Sink
	hot     []*entry
	state   []blockState // of each block
	why     []Reason     // of blocks before known that did not come
	started time.Time    // when the remote tier was first asked

	known  int    // blocks before it are in a tier, as far as is known
	behind Reason // why there are no more
	choice Reason // why a block before known was not served that has no reason of its own
	lost   Reason // why nothing may be used any more
	out    Outcome
	tiers  [tiers]int
}

type blockState uint8

const (
	placed blockState = 1 << iota // in the sink, without counting
	served                        // counts, and came from the cache
)

func (b *bringing) begin(l Lookup, s Sink) error {
	n := len(l.Chain)
	*b = bringing{
		c: b.c, shard: b.shard, layout: b.layout, tokens: b.tokens, lookup: l, scope: l.scope(), sink: s, hot: b.hot[:0], known: l.Held,
		state: slices.Grow(b.state[:0], n)[:n], why: slices.Grow(b.why[:0], n)[:n], choice: MissGate,
	}
	clear(b.state)
	clear(b.why)
	if have := s.Len(); have != l.Held*b.tokens || l.Held > n {
		b.known, b.lookup.Chain = 0, nil
		return fmt.Errorf("tiered: bring: the sink holds %d tokens, want %d, those of Lookup.Held blocks of %d", have, l.Held*b.tokens, n)
	}
	return nil
}

func (b *bringing) run(ctx context.Context) error {
	access, why := b.c.access(&b.lookup)
	if b.behind = why; why != MissNone || b.lookup.Held == len(b.lookup.Chain) {
		return nil
	}
	if err := b.takeHot(access); err != nil || b.over() {
		return err
	}
	switch {
	case access != AccessShared:
		b.behind = MissUnshared
		return nil
	case b.lookup.Mode == gate.Never:
		b.behind = MissGate
		return nil
	}
	b.started = b.c.now()
	take := b.meet
	if b.lookup.Whole || b.lookup.Mode == gate.Always {
		take = b.takeAll
	}
	if err := take(ctx); err != nil || b.over() || b.lookup.Whole {
		return err
	}
	return b.awaitOthers(ctx)
}

// access says which tiers a request may use at this moment; a reason other than MissNone, that it may use none.
func (c *Cache) access(l *Lookup) (Access, Reason) {
	now, sc := c.View(), l.scope()
	if why := sc.differs(now); why != MissNone {
		return AccessNone, why
	}
	switch a := min(l.View.Access, now.Access); {
	case a == AccessNone:
		return a, MissUnshared
	case c.remote == nil || c.closed.Load():
		return AccessHot, MissNone
	default:
		return a, MissNone
	}
}

// next is the first block that does not count yet.
func (b *bringing) next() int { return b.sink.Len() / b.tokens }

// over reports whether there is nothing left to get.
func (b *bringing) over() bool { return b.lost != MissNone || b.next() >= len(b.lookup.Chain) }

// takeHot brings the run of hot blocks that follows.
func (b *bringing) takeHot(access Access) error {
	first := b.next()
	b.hot = b.c.takeHot(b.hot[:0], &b.lookup, access, first)
	var err error
	for i, e := range b.hot {
		if err == nil {
			err = b.place(first+i, e)
		}
		e.release()
	}
	n := len(b.hot)
	clear(b.hot) // a pooled one must not name blocks
	if err != nil || n == 0 {
		return err
	}
	b.known = first + n
	_, err = b.count(b.known, Hot)
	return err
}

// place writes block i into the sink, where it does not count yet.
func (b *bringing) place(i int, e *entry) error {
	for p, kv := range e.places {
		if err := b.sink.Place(i*b.tokens, b.layout.Part(p), kv); err != nil {
			return fmt.Errorf("tiered: bring block %d: %w", i, err)
		}
	}
	b.state[i] = placed
	return nil
}

// count makes the blocks before end count, which all have been placed. This is the one place where K/V of the cache enters a computation, and
// where never stale is decided: the generation is compared after the last byte was placed and before anything can look at it.
//
//	request                     coordinator, other goroutines
//	─ place the last byte
//	                            the generation ends, the lease ends, the tenant is purged; or this process is stopped for an hour
//	─ allows: no                → nothing that was placed counts; the caller computes over it
//	─ allows: yes, Skip
//	                            the generation ends
//	─ computes on: a request that was under way when it ended, as if it had been a moment sooner
func (b *bringing) count(end int, from Tier) (ok bool, err error) {
	if !b.c.allows(&b.scope, AccessHot) && !countUnchecked() {
		b.lost = b.c.lost(&b.scope)
		return false, nil
	}
	first := b.next()
	if err := b.sink.Skip((end - first) * b.tokens); err != nil {
		return false, fmt.Errorf("tiered: bring blocks %d to %d: %w", first, end-1, err)
	}
	for i := first; i < end; i++ {
		b.state[i] = served
	}
	b.tiers[from] += end - first
	return true, nil
}

// join makes what has been placed count, from the front on, and computes the blocks in between that did not come.
func (b *bringing) join(ctx context.Context) error {
	for {
		first := b.next()
		n := slices.Index(b.state[first:], placed)
		if n < 0 || n > 0 && b.lookup.Whole {
			return nil
		}
		if n > 0 {
			if err := b.compute(ctx, first+n); err != nil {
				return err
			}
		}
		end := first + n
		for end < len(b.state) && b.state[end] == placed {
			end++
		}
		if ok, err := b.count(end, Remote); !ok {
			return err
		}
	}
}

// compute has the sink compute up to the beginning of block end.
func (b *bringing) compute(ctx context.Context, end int) error {
	had := b.sink.Len()
	err := b.sink.Compute(ctx, end*b.tokens)
	b.out.Computed += b.sink.Len() - had
	return err
}

// miss notes that block i did not come.
func (b *bringing) miss(i int, why Reason) {
	b.why[i] = why
	b.sick(why)
}

// sick notes when the remote tier was first found to be so.
func (b *bringing) sick(why Reason) {
	if why.Degraded() && b.out.Degraded == 0 {
		b.out.Degraded = max(1, b.c.now().Sub(b.started))
	}
}

// told takes in how many blocks the remote tier has behind those that count.
func (b *bringing) told(from, found int, why Reason) {
	b.known, b.behind = from+found, why
	b.sick(why)
}

// takeAll brings the run at the front that the remote tier has, and waits for it up to the time-outs.
func (b *bringing) takeAll(ctx context.Context) error {
	c, first := b.c, b.next()
	until := c.now().Add(cmp.Or(b.lookup.Wait, c.opts.FetchTimeout))
	found, why := c.probe(ctx, &b.scope, b.lookup.Chain[first:])
	if ctx.Err() != nil {
		return ctx.Err()
	}
	b.told(first, found, why)
	return b.take(ctx, first+found, until)
}

// take brings the blocks up to end that the remote tier has, in the order of the chain, and waits for them until the given moment.
func (b *bringing) take(ctx context.Context, end int, until time.Time) error {
	if first := b.next(); first < end {
		r := b.c.read(&b.lookup, first, end, until)
		err := b.drain(ctx, r)
		r.stop()
		if err != nil {
			return err
		}
	}
	return b.join(ctx)
}

func (b *bringing) drain(ctx context.Context, r *reading) error {
	for {
		i, e, what, why := r.next(ctx, r.until.Sub(b.c.now()))
		switch what {
		case arrived:
			if err := b.place(i, e); err != nil {
				return err
			}
		case missing:
			if b.miss(i, why); b.lookup.Whole {
				return nil // it cannot compute one block and go on
			}
		case givenUp:
			return ctx.Err()
		case allDone:
			return nil
		default:
			b.choice = why
			b.sick(why)
			return nil
		}
	}
}

// end counts what was found and missed, and says it.
func (b *bringing) end() Outcome {
	c, out := b.c, &b.out
	lookups := len(b.lookup.Chain) - min(b.lookup.Held, len(b.lookup.Chain))
	c.stats.count(b.shard, lookups, b.tiers)
	out.Hot, out.Remote = b.tiers[Hot]*b.tokens, b.tiers[Remote]*b.tokens
	switch {
	case len(b.lookup.Chain) == 0:
		out.Miss = MissShort
	case b.tiers[Hot]+b.tiers[Remote] < lookups:
		b.countMisses()
	}
	b.sink, b.lookup = nil, Lookup{} // a pooled one must not keep them alive
	return *out
}

// countMisses gives each block that was not served its reason.
func (b *bringing) countMisses() {
	now := b.c.now()
	for i := b.lookup.Held; i < len(b.state); i++ {
		if b.state[i] == served {
			continue
		}
		var why Reason
		switch {
		case b.lost != MissNone:
			why = b.lost
		case i < b.known:
			why = cmp.Or(b.why[i], b.choice)
		case b.behind == MissCold || b.behind.Absent() && i > b.known:
			why = b.c.fates.of(b.lookup.Chain[i], &b.scope.gen, now) // each has its own
		default:
			why = b.behind
		}
		b.c.stats.misses[why].Add(1)
		b.out.Misses[why] += b.tokens
		if b.out.Miss == MissNone || b.out.Miss == MissGate {
			b.out.Miss = why
		}
	}
}

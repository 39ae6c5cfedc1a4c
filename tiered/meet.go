package tiered

import (
	"context"
	"time"

	"github.com/kvtier/kvtier/gate"
)

const (
	// chunkTokens is how much is computed before the request looks again at what has arrived: as many tokens as engines like to take at once.
	chunkTokens = 128
	// leastTokens is how few tokens are worth a call to the engine when blocks are about to arrive in their place.
	leastTokens = 32
)

// meet brings what the remote tier has as far as that pays: blocks are read from the back while the sink computes from the front, until they
// meet. A block's K/V depends on everything before it, but its hash says what that was, so it can be placed before that has been computed.
func (b *bringing) meet(ctx context.Context) error {
	c, all := b.c, len(b.lookup.Chain)
	first := b.next()
	ask, wait := gate.Ask(c.Path(), b.prefill(), b.work(all), c.opts.ProbeTimeout)
	if !ask {
		b.behind = MissGate
		c.explore(b.scope, b.lookup.Chain, first, -1)
		return nil
	}
	q := c.ask(b.scope, b.lookup.Chain[first:])
	for ; !c.await(ctx, q.done, wait); wait = 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.behind = MissGate
		if c.now().Sub(q.asked) > gate.Overdue(c.Path()) {
			b.behind = MissDeadline // it is not that computing was fast
			b.sick(b.behind)
		}
		if b.next() >= all {
			return nil // everything has been computed meanwhile
		}
		if err := b.chunk(ctx, all, nil); err != nil {
			return err
		}
	}
	b.told(first, q.found, q.why)
	plan := gate.Decide(c.Path(), b.prefill(), b.work(b.known))
	if plan.Choice == gate.Compute {
		c.explore(b.scope, b.lookup.Chain, b.next(), max(0, b.known-b.next()))
		return nil
	}
	from := b.next()
	group := b.known - from
	if plan.Choice == gate.Both {
		group = c.groupOf(group)
	}
	r := c.readBack(&b.lookup, from, b.known, group, c.now().Add(plan.Deadline(c.opts.FetchTimeout)))
	err := b.approach(ctx, r)
	r.stop()
	if err != nil {
		return err
	}
	return b.join(ctx)
}

func (b *bringing) prefill() gate.Prefill {
	if b.lookup.Prefill == nil {
		return gate.Prefill{}
	}
	return b.lookup.Prefill.Estimate()
}

// work is what is left to get of the blocks before end.
func (b *bringing) work(end int) gate.Work {
	return gate.Work{At: b.sink.Len(), End: max(b.sink.Len(), end*b.tokens), Block: b.tokens, TokenBytes: float64(b.layout.BlockBytes()) / float64(b.tokens)}
}

// approach places blocks as they arrive and computes meanwhile, until nothing is left between the two.
func (b *bringing) approach(ctx context.Context, r *reading) error {
	wait := time.Duration(0)
	for b.next() < r.low() {
		i, e, what, why := r.next(ctx, wait)
		wait = 0
		switch what {
		case arrived:
			if err := b.place(i, e); err != nil {
				return err
			}
			continue
		case missing:
			b.miss(i, why) // those before it may still come: the sink computes this one in between
			continue
		case givenUp:
			return ctx.Err()
		case allDone:
			return nil
		case noRoom:
			b.choice = why
			return nil
		case overdue:
			b.choice = why
			b.sick(why)
		}
		plan := gate.Decide(r.path(), b.prefill(), b.work(r.low()))
		if r.late() {
			plan.Meet = r.low() * b.tokens
		} else if at := b.sink.Len(); plan.Meet-at < min(leastTokens, r.low()*b.tokens-at) {
			// Too few tokens for a call to the engine will have to be computed: wait, and decide anew.
			wait = plan.Patience()
			continue
		}
		if err := b.chunk(ctx, plan.Meet/b.tokens, r); err != nil {
			return err
		}
	}
	return nil
}

// chunk computes the next blocks, up to end; of r, if there is one, those need not arrive any more.
func (b *bringing) chunk(ctx context.Context, end int, r *reading) error {
	end = min(b.next()+max(1, chunkTokens/b.tokens), end)
	if r != nil {
		r.notBefore(end)
	}
	return b.compute(ctx, end)
}

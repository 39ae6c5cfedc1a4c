package tiered

import (
	"context"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// Back reads what the remote tier has of a chain from the end towards the front, while the caller computes from the front towards the end, until
// they meet. A block's K/V depends on everything before it, but its hash says what that was, so it can be placed before that has been
// computed; it counts from Take on, when nothing before it is missing any more.
//
//	f := cache.FetchHot(view, ns, chain, first) // and walk over it, then:
//	b := f.Back()                              // nil: there is nothing more to be had
//	b.Ask()
//	for !b.Answered(ctx, wait) { compute some }
//	b.Begin(plan)
//	for b.Low() is behind what was computed {
//		if b.Next(ctx, wait) { place b.Part(0), … of block b.Low() } else { compute some }
//	}
//	if b.Take() { what was placed counts }
//	f.Close()
//
// It is not safe for concurrent use. Only blocks that arrived are ever waited for, and only as long as the caller says.
type Back struct {
	f    *Fetch
	from int // blocks before it are hot
	end  int // blocks before it are in the cache, as far as is known
	low  int // blocks from it to end have been handed out

	answer *answer // nil: not asked
	asked  time.Time
	told   bool   // the answer has been taken in
	cut    Reason // why nothing before low is fetched

	rest     []block.Hash // last block first: those that there was no room for yet
	fills    []*fill      // last block first
	at       int          // index of the fill that is next
	released int          // fills given back since the last were begun
	group    int
	over     bool // nothing more will come
	cur      *entry

	floor int       // blocks before it are being computed
	size  int       // blocks to read, when it began
	began time.Time // zero: it has not
	until time.Time // when the plan has failed
	taken bool
}

// answer is what the remote tier says it has. It outlives a request that does not wait for it.
type answer struct {
	done  chan struct{} // closed once the others are set
	found int
	why   Reason
}

// Back returns the way to the blocks behind the hot ones, nil if all are hot or no others may be used.
func (f *Fetch) Back() *Back { return f.back }

// Blocks returns how many blocks the prompt has, and how many at its front are hot.
func (b *Back) Blocks() (all, hot int) { return len(b.f.hashes), b.from }

// Path is what is known of the remote tier: what was measured before, corrected by how this read fares.
func (b *Back) Path() Path {
	c := b.f.c
	p := c.Path()
	if b.began.IsZero() {
		return p
	}
	waited := c.now().Sub(b.began).Seconds() - p.RTT
	p.RTT = max(0, -waited)
	if waited <= 0 {
		return p
	}
	got := 0.0
	for i := range b.fills {
		if i >= b.at && !closed(b.fills[i].done) {
			break
		}
		got += float64(c.format.Layout().BlockBytes())
	}
	// The estimate weighs as much as a quarter of what is to be read, so that it gives way as soon as it turns out wrong.
	// Without one, it is as if nothing had taken any time until now.
	known := float64(b.size*c.format.Layout().BlockBytes()) / 4
	p.Byte = (p.Byte*known + waited) / (known + got)
	return p
}

// Path returns what was measured of reading from the remote tier.
func (c *Cache) Path() Path { return c.reads.estimate() }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Ask begins to ask the remote tier, in one round trip, how many blocks follow without a gap. It does not wait, and while the breaker is open
// it does not ask.
func (b *Back) Ask() {
	c, rest := b.f.c, b.f.hashes[b.from:]
	a := &answer{done: make(chan struct{}), why: MissBreaker}
	b.answer, b.asked = a, c.now()
	if !c.admits() {
		close(a.done)
		return
	}
	g, ns, cut := b.f.view.Generation, b.f.ns, b.f.view.Cuts[b.f.ns]
	c.background(func() {
		defer close(a.done)
		a.found, a.why = c.probeLater(&g, ns, cut, rest)
	})
}

// probeLater is probe in the background, where access may have ended before it begins.
func (c *Cache) probeLater(g *Generation, ns block.Digest, cut block.Cut, hashes []block.Hash) (int, Reason) {
	if !c.allows(g, ns, cut, AccessShared) {
		return 0, c.lost(g, ns, cut)
	}
	return c.probe(c.ctx, *g, hashes)
}

// Answered reports whether the answer is there, and waits for it at most that long.
func (b *Back) Answered(ctx context.Context, wait time.Duration) bool {
	if b.told {
		return true
	}
	if b.told = b.f.c.await(ctx, b.answer.done, wait); b.told {
		b.end = b.from + b.answer.found
		b.low = b.end
		if b.f.why = b.answer.why; b.end < len(b.f.hashes) {
			b.f.why = b.f.c.whyAbsent(b.answer.why, b.f.hashes[b.end], &b.f.view.Generation)
		}
	} else if b.f.why = MissGate; b.f.c.now().Sub(b.asked) > max(moment, seconds(meetSlack*b.f.c.Path().RTT)) {
		b.f.why = MissDeadline // it is not that computing was fast
	}
	return b.told
}

// End is the number of blocks of the prompt that are in the cache, hot or remote, from the front: what the answer said.
func (b *Back) End() int { return b.end }

// Low is the block that was handed out last; blocks from it to End have been.
func (b *Back) Low() int { return b.low }

// Begin starts to read, as planned.
func (b *Back) Begin(p Plan) {
	c := b.f.c
	b.began, b.cut = c.now(), MissGate
	b.until = b.began.Add(p.Deadline(c.opts.FetchTimeout))
	b.rest = slices.Clone(b.f.hashes[max(b.from, b.floor):b.end])
	slices.Reverse(b.rest)
	b.size = len(b.rest)
	b.group = len(b.rest)
	if p.Choice == ChooseBoth {
		b.group = c.groupOf(len(b.rest))
	}
	b.more()
}

// groupOf is how many of n blocks to ask for at a time while others are computed: few, so that the first are there soon and little is on its
// way in vain when both sides meet; enough that asking costs less than a fifth of the time.
func (c *Cache) groupOf(n int) int {
	p := c.Path()
	group := max(1, n/16)
	if p.Byte > 0 {
		group = max(group, int(4*p.RTT/p.Byte)/c.format.Layout().BlockBytes())
	}
	return min(n, group)
}

func (b *Back) more() {
	b.released = 0
	f, had := b.f, len(b.fills)
	var mine []*fill
	b.fills, mine = f.c.join(b.fills, f.view.Generation, f.ns, f.view.Cuts[f.ns], b.rest, f.first+b.end-1-had, -1)
	b.rest = b.rest[len(b.fills)-had:]
	if len(mine) > 0 {
		f.c.background(func() { f.c.reads.read(f.c.lead(mine, b.group)) })
	}
}

// Next moves on to the block before Low and reports whether it has arrived, for which it waits at most that long, and never beyond the plan's
// deadline. The block before must not be used any more.
func (b *Back) Next(ctx context.Context, wait time.Duration) bool {
	b.letGo()
	if b.over {
		return false
	}
	if len(b.rest) > 0 && (b.released >= b.f.c.refill || b.at == len(b.fills)) {
		b.more()
	}
	if b.at == len(b.fills) {
		if b.over = true; b.low > b.from && len(b.rest) > 0 {
			b.cut = MissBudget
		}
		return false
	}
	c, fl := b.f.c, b.fills[b.at]
	if !c.await(ctx, fl.done, min(wait, b.until.Sub(c.now()))) {
		if c.opts.Steps != nil && wait > 0 {
			b.until = c.now()
		}
		if b.Late() {
			b.cut = MissDeadline
		}
		return false
	}
	if fl.reason != MissNone {
		b.over, b.cut = true, fl.reason
		return false
	}
	// After the wait, not before it: the generation may have ended between the fill's commit and this.
	if !b.allowed() && !mutation.Is(mutation.NoCheckAtHandOver) {
		b.lose()
		return false
	}
	b.cur = fl.block
	b.low--
	b.at++
	return true
}

// Over reports whether no more blocks will come.
func (b *Back) Over() bool { return b.over }

// Late reports whether the plan's deadline has passed: what is missing is to be computed.
func (b *Back) Late() bool { return !b.f.c.now().Before(b.until) }

// Part returns the payload of part p of block Low: read-only, valid until the next call of Next, Take or Close.
func (b *Back) Part(p int) []byte { return b.cur.places[p] }

// Until says that blocks before the given one are not wanted any more, because they are being computed.
func (b *Back) Until(first int) {
	b.letGo()
	b.floor = max(b.floor, first)
	n := max(b.at, min(b.end-first, len(b.fills)))
	for _, fl := range b.fills[n:] {
		b.f.c.leave(fl)
	}
	b.fills = b.fills[:n]
	b.rest = b.rest[:max(0, min(len(b.rest), b.end-first-n))]
}

// Take ends the read. It reports whether all blocks that were handed out may be used: whatever stopped this process since, the grant is still
// there. If not, they are misses, and what was made of them must not be used. The caller has everything before Low.
func (b *Back) Take() bool {
	b.letGo()
	if b.low == b.end {
		return true
	}
	if b.taken = b.allowed() || mutation.Is(mutation.NoRecheck); !b.taken {
		b.lose()
		return false
	}
	b.f.tiers[Remote] += b.end - b.low
	return true
}

func (b *Back) allowed() bool {
	f := b.f
	return f.c.allows(&f.view.Generation, f.ns, f.view.Cuts[f.ns], AccessHot)
}

func (b *Back) lose() { b.over, b.low, b.cut = true, b.end, b.f.lost() }

func (b *Back) letGo() {
	if b.cur != nil {
		b.f.c.leave(b.fills[b.at-1])
		b.released++
		b.cur = nil
	}
}

// stop gives back everything.
func (b *Back) stop() {
	b.letGo()
	for _, fl := range b.fills[b.at:] {
		b.f.c.leave(fl)
	}
	b.fills, b.rest, b.over = nil, nil, true
	if !b.taken {
		b.low = b.end
	}
}

// miss says why not all blocks were served: first what went wrong, then what was not there, then what was computed by choice.
func (b *Back) miss() Reason {
	switch {
	case b.from < b.low && b.cut != MissGate:
		return b.cut
	case b.end < len(b.f.hashes):
		return b.f.why
	case b.from < b.low:
		return b.cut
	}
	return MissNone
}

func (b *Back) countMisses() {
	c := b.f.c
	if n := b.low - b.from; n > 0 {
		c.stats.misses[b.cut].Add(int64(n))
	}
	if b.end < len(b.f.hashes) {
		c.countMisses(b.f.hashes[b.end:], b.f.why, &b.f.view.Generation)
	}
}

// exploreBytes is how much is read to measure a path that was judged slow.
const exploreBytes = 256 << 10

// Pass ends the read before it began, because computing is faster. Now and then it has the path measured again, beside the request and
// without anybody waiting for it.
func (b *Back) Pass() {
	b.cut = MissGate
	c := b.f.c
	if b.told && b.end <= max(b.from, b.floor) || !c.admits() || !c.explore.due(c.now()) {
		return
	}
	g, ns, cut, from := b.f.view.Generation, b.f.ns, b.f.view.Cuts[b.f.ns], b.from
	rest, found := b.f.hashes[from:], b.end-from
	asked, depth := b.told, b.f.first+b.from
	c.background(func() {
		if !asked {
			found, _ = c.probeLater(&g, ns, cut, rest)
		}
		some := min(found, max(1, exploreBytes/c.format.Layout().BlockBytes()))
		joined, mine := c.join(nil, g, ns, cut, rest[:some], depth, 1)
		c.reads.renew(c.lead(mine, len(mine)))
		for _, fl := range joined {
			c.leave(fl)
		}
	})
}

// await reports whether done is closed, for which it waits at most that long.
func (c *Cache) await(ctx context.Context, done <-chan struct{}, wait time.Duration) bool {
	if closed(done) {
		return true
	}
	if wait <= 0 {
		return false
	}
	if c.opts.Steps != nil {
		return c.opts.Steps.Wait(done)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// admits reports whether the remote tier would be asked at all: an open breaker answers without.
func (c *Cache) admits() bool { return c.breaker == nil || c.breaker.Admits() }

package tiered

import (
	"context"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
)

// reading is a run of blocks on their way from the remote tier to one request, from the front of the run or from its back. As many are under
// way as Options.FillBytes has room for, and others as those are used up: the wire never waits for the request, and the bound holds. It is
// not safe for concurrent use.
type reading struct {
	c       *Cache
	scope   scope
	chain   []block.Hash // from the root; the request's
	from    int          // blocks of the chain before the run
	end     int          // blocks before the end of the run
	back    bool         // the last block first
	passing bool         // leave the hot tier as it is

	fills    []*fill // in the order of reading
	at       int     // the next of them
	released int     // given back since the last were begun
	group    int     // how many to ask for at a time
	cur      *fill   // handed out and not given back

	began time.Time
	until time.Time // when the request stops to wait
}

// arrival says what has become of the next block of a reading.
type arrival uint8

const (
	arrived arrival = iota // here it is
	missing                // it will not come; others may
	awaited                // it has not arrived yet
	overdue                // it has not arrived, and the time for reading is over
	noRoom                 // all bytes that may be under way are used by others
	allDone                // there is no next block
	givenUp                // the request's context has ended
)

// read begins to read the run [from, end) of l's chain, from the front, all at once.
func (c *Cache) read(l *Lookup, from, end int, until time.Time) *reading {
	return c.begin(&reading{from: from, end: end, group: end - from, until: until}, l)
}

// readBack begins to read the run [from, end) of l's chain, from the back, in groups of so many.
func (c *Cache) readBack(l *Lookup, from, end, group int, until time.Time) *reading {
	return c.begin(&reading{from: from, end: end, back: true, group: group, until: until}, l)
}

func (c *Cache) begin(r *reading, l *Lookup) *reading {
	r.c, r.scope, r.chain, r.passing, r.began, r.group = c, l.scope(), l.Chain, l.Passing, c.now(), max(1, r.group)
	r.more()
	return r
}

// block is the index in the chain of the k-th in the order of reading.
func (r *reading) block(k int) int {
	if r.back {
		return r.end - 1 - k
	}
	return r.from + k
}

// left is the number of blocks that have no fill yet.
func (r *reading) left() int { return max(0, r.end-r.from-len(r.fills)) }

// low is the first block, in the chain, of those that a reading from the back has come to.
func (r *reading) low() int { return r.end - r.at }

// more begins the fills that there is room for. Nobody ever waits for room while holding some.
func (r *reading) more() {
	r.released = 0
	mine := r.c.join(r, r.left())
	if len(mine) == 0 {
		return
	}
	c, group, until := r.c, r.group, r.until
	c.background(func() { c.reads.Read(c.fetch(mine, group, until)) })
}

// next says what has become of the next block, and waits for it at most that long. A block that arrived may be used until the next call; it
// counts only when Bring or Pin have compared the generation once more.
func (r *reading) next(ctx context.Context, wait time.Duration) (i int, e *entry, what arrival, why Reason) {
	r.letGo()
	if r.left() > 0 && (r.released >= r.c.refill || r.at == len(r.fills)) {
		r.more()
	}
	if r.at == len(r.fills) {
		if r.left() > 0 {
			return r.block(r.at), nil, noRoom, MissBudget
		}
		return 0, nil, allDone, MissNone
	}
	f := r.fills[r.at]
	i = r.block(r.at)
	if !r.c.await(ctx, f.done, min(wait, r.until.Sub(r.c.now()))) {
		switch {
		case ctx.Err() != nil:
			return i, nil, givenUp, MissDeadline
		case r.late() || r.c.opts.Steps != nil && wait > 0: // in a simulation a wait that is over is the last
			r.until = r.c.now()
			return i, nil, overdue, MissDeadline
		}
		return i, nil, awaited, MissNone
	}
	r.at++
	if f.reason != MissNone {
		r.c.leave(f)
		return i, nil, missing, f.reason
	}
	r.cur = f
	return i, f.block, arrived, MissNone
}

// late reports whether the time for reading is over.
func (r *reading) late() bool { return !r.c.now().Before(r.until) }

// notBefore says that blocks before the given one are not wanted any more, of a reading from the back: they are being computed.
func (r *reading) notBefore(first int) {
	if first <= r.from {
		return
	}
	r.from = min(first, r.low())
	n := min(r.end-r.from, len(r.fills))
	for _, f := range r.fills[n:] {
		r.c.leave(f)
	}
	r.fills = r.fills[:n]
}

func (r *reading) letGo() {
	if r.cur != nil {
		r.c.leave(r.cur)
		r.cur = nil
		r.released++
	}
}

// stop gives back everything.
func (r *reading) stop() {
	r.letGo()
	for _, f := range r.fills[r.at:] {
		r.c.leave(f)
	}
	r.fills = r.fills[:r.at]
}

// path is what is known of the remote tier: what was measured before, corrected by how this reading fares.
func (r *reading) path() gate.Path {
	p := r.c.Path()
	waited := r.c.now().Sub(r.began).Seconds() - p.RTT
	p.RTT = max(0, -waited)
	if waited <= 0 {
		return p
	}
	blockBytes := float64(r.c.format.Layout().BlockBytes())
	got := r.at
	for _, f := range r.fills[r.at:] {
		if !closed(f.done) {
			break
		}
		got++
	}
	// The estimate weighs as much as a quarter of what is to be read, so that it gives way as soon as it turns out wrong.
	// Without one, it is as if nothing had taken any time until now.
	known := float64(r.end-r.from) * blockBytes / 4
	p.Byte = (p.Byte*known + waited) / (known + float64(got)*blockBytes)
	return p
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

// question is what the remote tier is asked in the background. It outlives a request that does not wait for the answer.
type question struct {
	done  chan struct{} // closed once the others are set
	asked time.Time
	found int
	why   Reason
}

// ask begins to ask, in one round trip, how many blocks of hashes the remote tier has from the front. While the breaker is open it does not.
func (c *Cache) ask(sc scope, hashes []block.Hash) *question {
	q := &question{done: make(chan struct{}), asked: c.now(), why: MissBreaker}
	if !c.admits() {
		close(q.done)
		return q
	}
	hashes = slices.Clone(hashes) // the request may have ended, and its memory be used for another
	c.background(func() {
		defer close(q.done)
		q.found, q.why = c.probe(c.ctx, &sc, hashes)
	})
	return q
}

// probe asks how many of hashes the remote tier has from the front, complete with all their parts. It asks only while that is allowed: between a
// request's begin and this, or before a task in the background runs, the lease may have ended.
func (c *Cache) probe(ctx context.Context, sc *scope, hashes []block.Hash) (int, Reason) {
	if !c.allows(sc, AccessShared) {
		return 0, c.lost(sc)
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.ProbeTimeout)
	defer cancel()
	parts := c.format.Layout().PartCount()
	keys := c.keys(&sc.gen, hashes)
	start := c.now()
	n, err := c.remote.Lead(ctx, keys)
	switch {
	case err == nil:
		c.reads.Asked(c.now().Sub(start))
	case reasonOf(err) == MissDeadline:
		c.reads.Asked(c.now().Sub(start)) // at least
		return n / parts, MissDeadline
	default:
		return n / parts, reasonOf(err) // one node of several may be sick: the chain ends at its first block
	}
	if n < len(keys) && n%parts > 0 {
		return n / parts, MissIncomplete
	}
	return n / parts, MissCold
}

// exploreBytes is how much is read to measure a path that was judged slow.
const exploreBytes = 256 << 10

// explore has the path measured now and then by reading the first blocks of chain behind from, beside the request and without anybody waiting
// for it. found is how many of them the remote tier has, or negative if nobody has asked.
func (c *Cache) explore(sc scope, chain []block.Hash, from, found int) {
	if found == 0 || !c.admits() || !c.explorer.Due(c.now()) {
		return
	}
	most := max(1, exploreBytes/c.format.Layout().BlockBytes())
	chain = slices.Clone(chain[:min(len(chain), from+most)])
	c.background(func() {
		if found < 0 {
			found, _ = c.probe(c.ctx, &sc, chain[from:])
		}
		r := &reading{c: c, scope: sc, chain: chain, from: from, end: min(len(chain), from+found)}
		mine := c.join(r, r.left())
		c.reads.Renew(c.fetch(mine, len(mine), time.Time{}))
		r.stop()
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

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// admits reports whether the remote tier would be asked at all: an open breaker answers without.
func (c *Cache) admits() bool { return c.breaker == nil || c.breaker.Admits() }

// Path returns what was measured of reading from the remote tier.
func (c *Cache) Path() gate.Path { return c.reads.Estimate() }

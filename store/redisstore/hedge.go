package redisstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// A hedged read asks a replica too when its server has not answered within Options.Hedge, and takes what comes first. Get is hedged, and Lead but
// for a cluster's, which asks many servers at once, and nothing else: a value has its content's name, so that a replica's is the right one however
// stale the replica is. What a replica does not have says nothing, because it may only be late: the server is waited for, and if that fails, what
// the replica did have counts.
//
// A round trip that is under way cannot be abandoned, and it writes into its buffer. So each attempt has a batch of its own, with its own
// buffers, and what wins is copied into the caller's. An attempt that somebody waits for goes back to the pool; one that lost is left to the
// collector, with whatever it still reads.

const (
	// hedgeOneIn bounds hedges to one read in so many, so that a server which is slow because there is much to do is not helped by doubling it.
	hedgeOneIn = 20
	// hedgeBurst is how many hedges may be saved up.
	hedgeBurst = 32
)

// Hedges counts the reads that a replica was asked as well.
type Hedges struct {
	Sent int64 // what breakers refused is not among them
	Won  int64 // of those, the ones of which the replica's values were taken
}

// Hedges returns the counts since Open.
func (s *Store) Hedges() Hedges {
	if s.hedge == nil {
		return Hedges{}
	}
	won := s.hedge.won.Load() // before sent, which is never less
	return Hedges{Sent: s.hedge.sent.Load(), Won: won}
}

// hedger is what hedged reads have in common.
type hedger struct {
	delay     time.Duration
	replicas  []redis.UniversalClient // with Sentinel one, which chooses by itself
	cluster   *redis.ClusterClient    // that knows the replicas, if there is one
	lane      *lane                   // to all of them
	batches   sync.Pool               // of *batch with scratch
	turn      atomic.Uint32
	credit    atomic.Int64 // a read earns 1, a hedge costs hedgeOneIn
	sent, won atomic.Int64
	attempts  backgrounds
}

func newHedger(o Options, g guard, cluster *redis.ClusterClient) *hedger {
	h := &hedger{delay: o.Hedge, cluster: cluster, lane: newLane(o.MaxInFlightBytes, o.PoolSize)}
	h.credit.Store(hedgeBurst * hedgeOneIn)
	if o.Mode == Sentinel {
		h.replicas = []redis.UniversalClient{o.connect(g, true)}
	}
	for _, addr := range o.Replicas {
		one := o
		one.Addrs = []string{addr}
		h.replicas = append(h.replicas, one.connect(g, false))
	}
	return h
}

// ready counts a read, and reports whether it may be hedged. One that may not needs no buffers of its own.
func (h *hedger) ready() bool {
	credit := h.credit.Load()
	if credit < hedgeBurst*hedgeOneIn {
		credit = h.credit.Add(1)
	}
	return credit >= hedgeOneIn
}

// spend takes the price of a hedge, unless others have spent it meanwhile.
func (h *hedger) spend() bool {
	if h.credit.Add(-hedgeOneIn) >= 0 {
		return true
	}
	h.credit.Add(hedgeOneIn)
	return false
}

// ask calls read with one replica after the other until a breaker lets it through. All keys of the read are where key is.
func (h *hedger) ask(ctx context.Context, key string, read func(redis.UniversalClient) (refused bool)) {
	for _, c := range h.candidates(ctx, key) {
		if !read(c) {
			h.sent.Add(1)
			return
		}
	}
	h.credit.Add(hedgeOneIn) // nothing was sent
}

// candidates are the replicas that may have key, in the order in which they are to be asked.
func (h *hedger) candidates(ctx context.Context, key string) []redis.UniversalClient {
	if h.cluster == nil {
		at := int(h.turn.Add(1) % uint32(len(h.replicas)))
		return slices.Concat(h.replicas[at:], h.replicas[:at])
	}
	replica, err := h.cluster.SlaveForKey(ctx, key)
	if err != nil {
		return nil
	}
	if master, err := h.cluster.MasterForKey(ctx, key); err != nil || master == replica { // it has none
		return nil
	}
	return []redis.UniversalClient{replica}
}

// close ends what is under way and waits for it. The primary's client has been closed before.
func (h *hedger) close() error {
	var errs []error
	for _, c := range h.replicas {
		errs = append(errs, c.Close())
	}
	h.attempts.close()
	return errors.Join(errs...)
}

// race returns what primary and replica answered, nil for what did not. It asks the replica after the delay, and waits until the primary has
// answered, until the replica has everything, until both have failed, for ctx, or not at all if the store is closed. replica returns nil if it was
// not asked. Both are given a context that ends with the race, for what has not been sent by then.
func race[T any](ctx context.Context, h *hedger, primary, replica func(context.Context) *T, answered, everything func(*T) bool) (p, r *T) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	// With room for one answer each, so that an attempt that nobody waits for any more can end.
	first, second := make(chan *T, 1), (chan *T)(nil)
	if !h.attempts.begin(func() { first <- primary(waiting) }) {
		return nil, nil
	}
	timer := time.NewTimer(h.delay)
	defer timer.Stop()
	for {
		select {
		case p = <-first:
			if second == nil || answered(p) {
				return p, r
			}
			first = nil
		case <-timer.C:
			answer := make(chan *T, 1)
			if h.spend() && h.attempts.begin(func() { answer <- replica(waiting) }) {
				second = answer
			}
		case r = <-second:
			if p != nil || r != nil && everything(r) {
				return p, r
			}
			second = nil
		case <-ctx.Done():
			return p, r
		}
	}
}

// lasting is for a round trip of an attempt: it ends at ctx's deadline, but not when the race is over, so that a server that has not answered by
// its deadline is known to be sick although a replica has answered in its place.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	end, has := ctx.Deadline()
	ctx = context.WithoutCancel(ctx)
	if !has {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, end)
}

// getHedged is getSpan with a hedge.
func (b *batch) getHedged(ctx context.Context, h *hedger, l *lane, sp span) {
	s, n := b.s, sp.to-sp.from
	keys, sizes := make([]string, n), make([]int, n) // the caller's and b are others' when an attempt that lost comes to its end
	for j, i := range b.order[sp.from:sp.to] {
		keys[j], sizes[j] = b.keys[i], len(b.bufs[i])
	}
	attempt := func(ctx context.Context, c redis.UniversalClient, l *lane) *batch {
		a := s.batchFrom(&h.batches, n)
		a.client, a.keys, a.scratch, a.bufs = c, keys, grow(a.scratch, sp.bytes), make([][]byte, n)
		at := 0
		for j, size := range sizes {
			a.order[j], a.bufs[j] = int32(j), a.scratch[at:at+size:at+size]
			at += size
		}
		trip, cancel := lasting(ctx)
		defer cancel()
		a.read(ctx, trip, l, span{0, n, sp.bytes})
		return a
	}
	primary := func(ctx context.Context) *batch { return attempt(ctx, s.client, l) }
	replica := func(ctx context.Context) (a *batch) {
		h.ask(ctx, keys[0], func(c redis.UniversalClient) bool {
			a = attempt(ctx, c, h.lane)
			if a.each(func(err error) bool { return errors.Is(err, store.ErrUnavailable) }) {
				a.free()
				a = nil
			}
			return a == nil
		})
		return a
	}
	p, r := race(ctx, h, primary, replica, func(a *batch) bool { return a.each(isAnswer) }, func(a *batch) bool {
		return a.each(func(err error) bool { return err == nil })
	})
	won := false
	for j, i := range b.order[sp.from:sp.to] {
		switch {
		case p != nil && isAnswer(p.results[j].err):
			b.take(i, p, j)
		case r != nil && r.results[j].err == nil:
			b.take(i, r, j)
			won = true
		case p != nil:
			b.take(i, p, j)
		default:
			b.results[i] = result{err: wrap(ctx, "get", b.keys[i], s.blame(ctx, b.keys[i], s.usable(ctx)))}
		}
	}
	if won {
		h.won.Add(1)
	}
	for _, a := range []*batch{p, r} {
		if a != nil {
			a.free()
		}
	}
}

// take makes the outcome of a's key j that of key i.
func (b *batch) take(i int32, a *batch, j int) {
	b.results[i] = a.results[j]
	if a.results[j].err == nil {
		copy(b.bufs[i], a.bufs[j][:a.results[j].n])
	}
}

// each reports whether f is true of every key's error.
func (b *batch) each(f func(error) bool) bool {
	return !slices.ContainsFunc(b.results, func(r result) bool { return !f(r.err) })
}

// isAnswer reports whether err is one that a server gave about a key.
func isAnswer(err error) bool {
	return err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrTooLarge)
}

// led is an answer to Lead.
type led struct {
	n   int
	err error
}

// leadHedged is Lead with a hedge. A replica that lacks a key cannot tell whether the server does: what it has counts if the server fails.
func (s *Store) leadHedged(ctx context.Context, h *hedger, keys []string) (int, error) {
	keys = slices.Clone(keys)
	attempt := func(ctx context.Context, c redis.UniversalClient) *led {
		trip, cancel := lasting(ctx)
		defer cancel()
		l := s.answer(trip, c, s.newProbe(keys))
		return &l
	}
	primary := func(ctx context.Context) *led { return attempt(ctx, s.client) }
	replica := func(ctx context.Context) (a *led) {
		h.ask(ctx, keys[0], func(c redis.UniversalClient) bool {
			if a = attempt(ctx, c); errors.Is(a.err, store.ErrUnavailable) && a.n == 0 {
				a = nil
			}
			return a == nil
		})
		return a
	}
	p, r := race(ctx, h, primary, replica, func(a *led) bool { return a.err == nil }, func(a *led) bool { return a.n == len(keys) })
	if r != nil && r.n > 0 && (p == nil || p.err != nil && p.n < r.n) {
		h.won.Add(1)
		if r.n == len(keys) {
			return r.n, nil
		}
	} else {
		r = &led{}
	}
	if p == nil {
		p = &led{err: wrap(ctx, "lead", keys[0], s.blame(ctx, keys[0], s.usable(ctx)))}
	}
	return max(p.n, r.n), p.err
}

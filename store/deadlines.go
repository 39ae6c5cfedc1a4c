package store

import (
	"context"
	"iter"
	"time"
)

// Deadlines are what WithDeadlines gives to calls whose context has no deadline. Zero means the default, negative none.
type Deadlines struct {
	// Lead and Ping default to 250 ms: one small round trip.
	Lead, Ping time.Duration
	// Get, Put and Delete default to 2 s for a whole batch.
	Get, Put, Delete time.Duration
}

func (d Deadlines) withDefaults() Deadlines {
	set := func(field *time.Duration, value time.Duration) {
		if *field == 0 {
			*field = value
		}
	}
	set(&d.Lead, 250*time.Millisecond)
	set(&d.Ping, 250*time.Millisecond)
	set(&d.Get, 2*time.Second)
	set(&d.Put, 2*time.Second)
	set(&d.Delete, 2*time.Second)
	return d
}

type deadlined struct {
	Store
	deadlines Deadlines
}

// WithDeadlines wraps s so that no call waits without end, for stores whose callers pass contexts of requests that may have no
// deadline. A call whose context has a deadline keeps it. Put it inside a Breaker, so that hanging counts as a fault:
// WithBreaker(WithDeadlines(s, d), o).
func WithDeadlines(s Store, d Deadlines) Store {
	return &deadlined{s, d.withDefaults()}
}

// Unwrap returns the wrapped store.
func (s *deadlined) Unwrap() Store { return s.Store }

func (s *deadlined) Lead(ctx context.Context, keys []string) (int, error) {
	ctx, cancel := within(ctx, s.deadlines.Lead)
	defer cancel()
	return s.Store.Lead(ctx, keys)
}

func (s *deadlined) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	if _, has := ctx.Deadline(); has || s.deadlines.Get < 0 {
		return s.Store.Get(ctx, keys, bufs)
	}
	return func(yield func(int, error) bool) { // the time counts from the loop, not from the call
		ctx, cancel := within(ctx, s.deadlines.Get)
		defer cancel()
		s.Store.Get(ctx, keys, bufs)(yield)
	}
}

func (s *deadlined) Put(ctx context.Context, items []Item, ttl time.Duration) error {
	ctx, cancel := within(ctx, s.deadlines.Put)
	defer cancel()
	return s.Store.Put(ctx, items, ttl)
}

func (s *deadlined) Delete(ctx context.Context, keys []string) (int, error) {
	ctx, cancel := within(ctx, s.deadlines.Delete)
	defer cancel()
	return s.Store.Delete(ctx, keys)
}

func (s *deadlined) Ping(ctx context.Context) error {
	ctx, cancel := within(ctx, s.deadlines.Ping)
	defer cancel()
	return s.Store.Ping(ctx)
}

// within limits ctx to d unless it has a deadline or d is negative.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has || d < 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

var _ Store = (*Breaker)(nil)

// BreakerState is what a Breaker does with calls.
type BreakerState uint8

const (
	// BreakerClosed lets calls through: the store is well.
	BreakerClosed BreakerState = iota
	// BreakerOpen answers ErrUnavailable without asking the store.
	BreakerOpen
	// BreakerHalfOpen has let one call through, whose outcome decides, and treats the others as BreakerOpen does.
	BreakerHalfOpen
)

// String returns closed, open or half-open.
func (s BreakerState) String() string {
	switch s {
	case BreakerClosed:
		return "closed"
	case BreakerOpen:
		return "open"
	case BreakerHalfOpen:
		return "half-open"
	default:
		return fmt.Sprintf("BreakerState(%d)", uint8(s))
	}
}

// BreakerOptions configures WithBreaker. Zero means the default everywhere.
type BreakerOptions struct {
	// Faults is how many calls in a row must fail before the breaker opens. Default 5.
	Faults int
	// MinDelay is how long it stays open the first time, default 1 s; each probe that fails doubles that, up to MaxDelay, default 30 s,
	// with Probe 2 s.
	MinDelay, MaxDelay time.Duration
	// Jitter is by which part at most a delay is shortened at random, so that many workers do not probe together.
	// Default 0.2; negative means none; below 1.
	Jitter float64
	// Probe asks in the background each time the delay is over, so that a recovery is seen within seconds and by
	// nobody's request. It should be cheap. What is in front of one node of several (ErrNode, ErrUnavailable) says nothing against the whole.
	// Once it returns ErrClosed nobody asks any more. Nil: the next call is the probe.
	Probe func(context.Context) error
	// ProbeTimeout is how long a probe may take before another may be sent, default 10 s, with Probe 2 s: a caller that never ends its
	// loop over Get must not keep the breaker half-open forever.
	ProbeTimeout time.Duration
	// OnStateChange is called after each change, in order, never concurrently, outside locks; it should return soon, because the call
	// that made the change waits. Nil: nothing.
	OnStateChange func(from, to BreakerState)
}

func (o BreakerOptions) withDefaults() BreakerOptions {
	if o.Faults <= 0 {
		o.Faults = 5
	}
	if o.MinDelay <= 0 {
		o.MinDelay = time.Second
	}
	maxDelay, probeTimeout := 30*time.Second, 10*time.Second
	if o.Probe != nil { // no caller waits for it
		maxDelay, probeTimeout = 2*time.Second, 2*time.Second
	}
	if o.MaxDelay <= 0 {
		o.MaxDelay = maxDelay
	}
	o.MaxDelay = max(o.MaxDelay, o.MinDelay)
	if o.Jitter == 0 {
		o.Jitter = 0.2
	}
	o.Jitter = min(max(o.Jitter, 0), 0.99)
	if o.ProbeTimeout <= 0 {
		o.ProbeTimeout = probeTimeout
	}
	return o
}

// Breaker is a Store that stops asking a store which is sick, as its Circuit says. It is safe for concurrent use.
//
// The powers of the wrapped store, found with As, are not guarded.
type Breaker struct {
	*Circuit
	inner Store
}

// Circuit counts calls that end with a fault (IsFault: time-outs are faults, ordinary misses and callers that went away are not). After
// BreakerOptions.Faults of them in a row it opens and answers ErrUnavailable at once. When the delay is over, BreakerOptions.Probe or the next
// call is a probe: if it succeeds, the circuit closes; if it fails, the delay doubles. It is safe for concurrent use.
type Circuit struct {
	opts        BreakerOptions
	unavailable error // made once, so that an open breaker allocates nothing

	mu sync.Mutex
	// circuit counts and decides. Its own delay is zero: it offers growing delays only to code that it runs itself, which would
	// allocate for each call and let results from before a trip decide after it. The delays are in until.
	circuit circuitbreaker.CircuitBreaker[any]
	state   BreakerState
	era     uint64        // number of state changes: the outcome of a call from an earlier era says nothing about this one
	delay   time.Duration // of the current or last open era, before jitter
	until   time.Time     // open: when the next call may probe; half-open: when the probe is given up
	changes []change      // not yet told
	telling bool
	healing bool // heal runs, or will not run again

	life  context.Context // of heal
	stop  context.CancelFunc
	heals sync.WaitGroup
}

type change struct{ from, to BreakerState }

// WithBreaker wraps s for callers that prefer a quick no to a slow one. Each back end needs a Breaker of its own. Close ends its probes.
func WithBreaker(s Store, o BreakerOptions) *Breaker {
	return &Breaker{Circuit: NewCircuit(o), inner: s}
}

// NewCircuit returns a closed circuit, for what is no Store, such as one node of several. One with BreakerOptions.Probe wants to be stopped.
func NewCircuit(o BreakerOptions) *Circuit {
	c := &Circuit{opts: o.withDefaults(), unavailable: fmt.Errorf("breaker is open: %w", ErrUnavailable)}
	c.circuit = circuitbreaker.NewBuilder[any]().
		WithFailureThreshold(uint(c.opts.Faults)).
		WithSuccessThreshold(1).
		WithDelay(0).
		OnStateChanged(c.changed). // called within methods of circuit, thus with mu held
		Build()
	c.life, c.stop = context.WithCancel(context.Background())
	return c
}

// Stop ends the probing in the background; an open circuit stays open.
func (b *Circuit) Stop() {
	b.mu.Lock()
	b.healing = true
	b.mu.Unlock()
	b.stop()
}

// Wait returns when the last probe has, after Stop.
func (b *Circuit) Wait() { b.heals.Wait() }

// Guard runs call if the circuit admits it, counts its outcome and returns its error, or ErrUnavailable.
func (b *Circuit) Guard(ctx context.Context, call func() error) error {
	_, err := guarded(ctx, b, func() (int, error) { return 0, call() })
	return err
}

// State returns the state. An open breaker whose delay is over stays open until the next probe.
func (b *Circuit) State() BreakerState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// Admits reports whether a call made now would reach the store. It changes nothing, and costs less than to prepare a call in vain.
func (b *Circuit) Admits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == BreakerClosed || b.opts.Probe == nil && !time.Now().Before(b.until)
}

// Unwrap returns the wrapped store.
func (b *Breaker) Unwrap() Store { return b.inner }

// Lead implements Store.
func (b *Breaker) Lead(ctx context.Context, keys []string) (int, error) {
	if len(keys) == 0 {
		return b.inner.Lead(ctx, keys)
	}
	return guarded(ctx, b.Circuit, func() (int, error) { return b.inner.Lead(ctx, keys) })
}

// Get implements Store. The call's outcome is a fault if any key's was.
func (b *Breaker) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	seq := b.inner.Get(ctx, keys, bufs)
	if len(keys) == 0 {
		return seq
	}
	return func(yield func(int, error) bool) {
		era, err := b.admit(ctx)
		if err != nil {
			for range keys {
				if !yield(0, err) {
					return
				}
			}
			return
		}
		worst := outcomeNone
		defer func() { b.record(era, worst) }()
		for n, err := range seq {
			if worst = max(worst, outcomeOf(err)); worst != outcomeNone && b.State() == BreakerHalfOpen {
				b.record(era, worst) // do not let the loop body delay the recovery; later results are of another era
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

// Put implements Store.
func (b *Breaker) Put(ctx context.Context, items []Item, ttl time.Duration) error {
	if len(items) == 0 {
		return b.inner.Put(ctx, items, ttl)
	}
	_, err := guarded(ctx, b.Circuit, func() (int, error) { return 0, b.inner.Put(ctx, items, ttl) })
	return err
}

// Delete implements Store.
func (b *Breaker) Delete(ctx context.Context, keys []string) (int, error) {
	if len(keys) == 0 {
		return b.inner.Delete(ctx, keys)
	}
	return guarded(ctx, b.Circuit, func() (int, error) { return b.inner.Delete(ctx, keys) })
}

// Ping implements Store. It is refused and counted like any call, and makes a cheap probe.
func (b *Breaker) Ping(ctx context.Context) error {
	_, err := guarded(ctx, b.Circuit, func() (int, error) { return 0, b.inner.Ping(ctx) })
	return err
}

// Close implements Store. It always reaches the store, and ends probing.
func (b *Breaker) Close() error {
	b.Stop()
	err := b.inner.Close() // a probe that waits for an answer ends
	b.Wait()
	return err
}

// guarded runs call if the breaker admits it, and counts its outcome.
func guarded(ctx context.Context, b *Circuit, call func() (int, error)) (int, error) {
	era, err := b.admit(ctx)
	if err != nil {
		return 0, err
	}
	outcome := outcomeNone
	defer func() { b.record(era, outcome) }() // also when call panics
	n, err := call()
	outcome = outcomeOf(err)
	return n, err
}

// admit returns the era of a call that may go ahead, or the reason why it may not.
func (b *Circuit) admit(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("breaker: %w", err) // it must neither count as a fault nor use up the probe
	}
	b.mu.Lock()
	ok := b.state == BreakerClosed || b.opts.Probe == nil && b.tryProbe()
	era := b.era
	b.tellAndUnlock()
	if !ok {
		return 0, b.unavailable
	}
	return era, nil
}

// tryProbe makes a circuit that is not closed half-open, if it is time. The caller holds mu.
func (b *Circuit) tryProbe() bool {
	now := time.Now()
	if now.Before(b.until) {
		return false
	}
	if b.state == BreakerHalfOpen { // the probe was lost: begin another without waiting again
		b.circuit.Open()
	}
	if !b.circuit.TryAcquirePermit() {
		return false
	}
	b.until = now.Add(b.opts.ProbeTimeout)
	return true
}

// heal probes until the circuit is closed.
func (b *Circuit) heal() {
	for {
		b.mu.Lock()
		if b.state == BreakerClosed {
			b.healing = false
			b.mu.Unlock()
			return
		}
		wait := time.Until(b.until)
		b.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-b.life.Done():
			return
		}
		b.mu.Lock()
		probing, era := b.tryProbe(), b.era
		b.tellAndUnlock()
		if !probing {
			continue
		}
		ctx, cancel := context.WithTimeout(b.life, b.opts.ProbeTimeout)
		err := b.opts.Probe(ctx)
		cancel()
		if errors.Is(err, ErrClosed) || b.life.Err() != nil {
			return
		}
		o := outcomeOf(err)
		if errors.Is(err, ErrNode) || errors.Is(err, ErrUnavailable) {
			o = outcomeWell
		}
		b.record(era, o)
	}
}

// record counts the outcome of a call, unless the state has changed since the call began.
func (b *Circuit) record(era uint64, o outcome) {
	b.mu.Lock()
	defer b.tellAndUnlock()
	if era != b.era {
		return
	}
	switch {
	case o == outcomeWell:
		b.circuit.RecordSuccess()
	case o == outcomeFault:
		if b.state == BreakerHalfOpen {
			b.delay = min(2*b.delay, b.opts.MaxDelay)
		} else {
			b.delay = b.opts.MinDelay
		}
		b.circuit.RecordFailure()
	case b.state == BreakerHalfOpen: // the probe says nothing: the next call may try again at once
		b.circuit.Open()
		if b.opts.Probe == nil {
			b.until = time.Time{}
		}
	}
}

// changed follows circuit. The caller holds mu.
func (b *Circuit) changed(e circuitbreaker.StateChangedEvent) {
	from := b.state
	switch e.NewState {
	case circuitbreaker.ClosedState:
		b.state = BreakerClosed
	case circuitbreaker.OpenState:
		b.state = BreakerOpen
		b.until = time.Now().Add(b.delay - time.Duration(b.opts.Jitter*rand.Float64()*float64(b.delay)))
		if b.opts.Probe != nil && !b.healing {
			b.healing = true
			b.heals.Go(b.heal)
		}
	case circuitbreaker.HalfOpenState:
		b.state = BreakerHalfOpen
	}
	b.era++
	if b.opts.OnStateChange != nil {
		b.changes = append(b.changes, change{from, b.state})
	}
}

// tellAndUnlock releases mu and reports pending changes, in order, one goroutine at a time.
func (b *Circuit) tellAndUnlock() {
	if b.telling || len(b.changes) == 0 {
		b.mu.Unlock()
		return
	}
	b.telling = true
	for len(b.changes) > 0 {
		c := b.changes[0]
		b.changes = b.changes[1:]
		b.mu.Unlock()
		b.opts.OnStateChange(c.from, c.to)
		b.mu.Lock()
	}
	b.telling = false
	b.mu.Unlock()
}

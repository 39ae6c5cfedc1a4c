package stalecheck

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Options of a run. Zero fields mean their default.
type Options struct {
	Seed uint64
	// Ops is how many operations to run; default 100,000. An operation is one step that the scheduler takes, at the top or in the
	// middle of another: a request, a background task, a poll, a heartbeat, a change of a record, a fault.
	Ops int
	// Episode is how many operations run in one world before a new one with other settings begins; default 20,000.
	Episode int
	// Parallel is how many episodes run at once; default GOMAXPROCS. It does not change the result.
	Parallel int
	// Progress, if set, is called after every episode with the operations it ran; from several goroutines.
	Progress func(ops int)

	first   int   // number of the first episode
	without fault // faults that do not happen: for shrinking
}

func (o Options) withDefaults() Options {
	if o.Ops == 0 {
		o.Ops = 100_000
	}
	if o.Episode == 0 {
		o.Episode = 20_000
	}
	if o.Parallel == 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	return o
}

// Result is what a run has seen. Counts say how much of the protocol it went through.
type Result struct {
	Seed       uint64           `json:"seed"`
	Ops        int64            `json:"ops"`
	Episodes   int              `json:"episodes"`
	Stale      int64            `json:"stale"` // blocks used that should not have been: I1 to I6
	Invariants []Invariant      `json:"invariants"`
	Counts     map[string]int64 `json:"counts"`
	Violation  *Violation       `json:"violation,omitempty"`
	Seconds    float64          `json:"seconds"`
}

// Run simulates until Options.Ops, the first violation, or the end of ctx, whose error it returns together with what was seen until then. A
// violation is in the Result, not an error.
func Run(ctx context.Context, o Options) (Result, error) {
	o = o.withDefaults()
	start := time.Now()
	res := Result{Seed: o.Seed, Invariants: Invariants(), Counts: map[string]int64{}}
	episodes := (o.Ops + o.Episode - 1) / o.Episode
	var mu sync.Mutex
	next, stopAt := 0, episodes
	var wg sync.WaitGroup
	for range min(o.Parallel, episodes) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				done := i >= stopAt || ctx.Err() != nil
				mu.Unlock()
				if done {
					return
				}
				w := newWorld(o.Seed, o.first+i, o.without)
				w.run(ctx, min(o.Episode, o.Ops-i*o.Episode))
				mu.Lock()
				if v := w.violation; v != nil {
					stopAt = min(stopAt, i) // earlier episodes still finish, so that the first one is reported whatever the order
					if res.Violation == nil || v.Episode < res.Violation.Episode {
						res.Violation = v
					}
				}
				res.add(w)
				mu.Unlock()
				if o.Progress != nil {
					o.Progress(w.ops)
				}
			}
		})
	}
	wg.Wait()
	res.Seconds = time.Since(start).Seconds()
	if res.Violation != nil {
		shrink(ctx, o, res.Violation)
		return res, nil
	}
	return res, context.Cause(ctx)
}

func (r *Result) add(w *world) {
	r.Ops += int64(w.ops)
	r.Episodes++
	for i, n := range w.checks {
		r.Invariants[i].Checks += n
	}
	for k, n := range w.counts {
		r.Counts[counterNames[k]] += n
	}
	if v := w.violation; v != nil && slices.Contains([]string{"I1", "I2", "I3", "I4", "I5", "I6"}, v.Invariant) {
		r.Stale++
	}
}

// shrink leaves out one kind of fault after the other as long as the same invariant breaks, and keeps the trace of the run that needs the fewest.
func shrink(ctx context.Context, o Options, v *Violation) {
	without := o.without
	for f := range allFaults() {
		if ctx.Err() != nil {
			break
		}
		w := newWorld(v.Seed, v.Episode, without|f)
		w.run(ctx, o.Episode)
		if again := w.violation; again != nil && again.Invariant == v.Invariant {
			without |= f
			*v = *again
		}
	}
	v.Faults = []string{}
	for f := range allFaults() {
		if without&f == 0 {
			v.Faults = append(v.Faults, f.String())
		}
	}
}

// errStop unwinds a run after a violation.
var errStop = errors.New("stalecheck: stopped")

package bench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// Work is what one call of Method.Do did.
type Work struct {
	Bytes int64 // of payload
	Ops   int64
}

// Method is one way of doing the work that is compared.
type Method struct {
	Name string
	// Do does a batch of the work. It is called again and again, never by two goroutines at once.
	Do func(ctx context.Context) (Work, error)
}

// Plan says how long to measure.
type Plan struct {
	Rounds int           // of every method
	Slice  time.Duration // of one method in one round; at least one call is made
}

// PlanFor spreads d over the rounds of n methods: five rounds, fewer where a slice would last less than 100 ms.
func PlanFor(d time.Duration, n int) Plan {
	rounds := int(d / (time.Duration(max(1, n)) * 100 * time.Millisecond))
	rounds = min(5, max(1, rounds))
	return Plan{Rounds: rounds, Slice: d / time.Duration(rounds*max(1, n))}
}

// Sample is one method in one round.
type Sample struct {
	Seconds       float64
	Bytes, Ops    int64
	CPUSeconds    float64 // of this process, all threads
	Allocs, Alloc uint64  // objects and bytes
}

// GBps is the rate in GB/s.
func (s Sample) GBps() float64 { return float64(s.Bytes) / s.Seconds / 1e9 }

// NsPerOp is the time of one operation.
func (s Sample) NsPerOp() float64 { return s.Seconds * 1e9 / float64(s.Ops) }

// AllocsPerOp is the objects allocated per operation.
func (s Sample) AllocsPerOp() float64 { return float64(s.Allocs) / float64(s.Ops) }

// AllocBytesPerOp is the bytes allocated per operation.
func (s Sample) AllocBytesPerOp() float64 { return float64(s.Alloc) / float64(s.Ops) }

// CPUSecondsPerGB is this process's processor time per GB.
func (s Sample) CPUSecondsPerGB() float64 { return s.CPUSeconds / (float64(s.Bytes) / 1e9) }

// Series is a method's samples, one per round.
type Series struct {
	Name    string
	Samples []Sample
}

// Range is a median with the extremes. JSON names are stable.
type Range struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func (r Range) String() string { return fmt.Sprintf("%.2f (%.2f–%.2f)", r.Median, r.Min, r.Max) }

// Of is the range of a figure over the rounds.
func (s Series) Of(figure func(Sample) float64) Range {
	v := make([]float64, 0, len(s.Samples))
	for _, x := range s.Samples {
		v = append(v, figure(x))
	}
	return rangeOf(v)
}

// Ratio is the range of s's rate divided by base's, round by round.
func (s Series) Ratio(base Series) Range {
	v := make([]float64, 0, len(s.Samples))
	for i, x := range s.Samples {
		v = append(v, x.GBps()/base.Samples[i].GBps())
	}
	return rangeOf(v)
}

func rangeOf(v []float64) Range {
	if len(v) == 0 {
		return Range{}
	}
	v = slices.Sorted(slices.Values(v))
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (m + v[len(v)/2-1]) / 2
	}
	return Range{Median: m, Min: v[0], Max: v[len(v)-1]}
}

// Rounds measures methods in turns. Every method works once unmeasured before the first round. Each round begins with another
// method, so that none always follows the same neighbour. step, if not nil, is called after each of the Rounds × len(methods) slices.
func Rounds(ctx context.Context, p Plan, methods []Method, step func()) ([]Series, error) {
	all := make([]Series, len(methods))
	for i, m := range methods {
		all[i] = Series{Name: m.Name}
		if _, err := m.Do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	for round := range p.Rounds {
		for j := range methods {
			i := (round + j) % len(methods)
			s, err := measure(ctx, p.Slice, methods[i].Do)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", methods[i].Name, err)
			}
			all[i].Samples = append(all[i].Samples, s)
			if step != nil {
				step()
			}
		}
	}
	return all, nil
}

// measure calls do for about d. It collects garbage first: nobody pays for what the method before left behind.
func measure(ctx context.Context, d time.Duration, do func(context.Context) (Work, error)) (Sample, error) {
	runtime.GC()
	var before, after runtime.MemStats
	var s Sample
	runtime.ReadMemStats(&before)
	cpu, start := cpuTime(), time.Now()
	for s.Ops == 0 || time.Since(start) < d {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		w, err := do(ctx)
		if err != nil {
			return s, err
		}
		if w.Ops == 0 {
			return s, fmt.Errorf("bench: a call did no work")
		}
		s.Bytes += w.Bytes
		s.Ops += w.Ops
	}
	s.Seconds = time.Since(start).Seconds()
	s.CPUSeconds = (cpuTime() - cpu).Seconds()
	runtime.ReadMemStats(&after)
	s.Allocs, s.Alloc = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	return s, nil
}

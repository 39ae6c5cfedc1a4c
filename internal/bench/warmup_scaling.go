package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kvtier/kvtier/internal/pause"
	"github.com/kvtier/kvtier/warmup"
	"github.com/kvtier/kvtier/worker"
)

// ScalingResult is what a second worker brings, next to what a second process that only computes brings. Workers are processes of one thread
// each. JSON names are stable.
type ScalingResult struct {
	Rounds  int   `json:"rounds"`
	Prompts int   `json:"prompts"`
	Tokens  int64 `json:"tokens"` // that a run computes

	One   Range `json:"one_tokens_per_s"`
	Two   Range `json:"two_tokens_per_s"`
	Ratio Range `json:"ratio"` // of two to one, round by round

	BoundOne   Range `json:"bound_one_tokens_per_s"` // the same prompts computed, nothing looked up, shared or stored
	BoundTwo   Range `json:"bound_two_tokens_per_s"`
	BoundRatio Range `json:"bound_ratio"`
	OfBound    Range `json:"of_bound"` // Ratio to BoundRatio
}

func ratios(a, b []float64) []float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return r
}

// fleets are the kinds of runs: how many workers, and whether they only compute.
var fleets = []struct {
	workers int
	bound   bool
}{{1, false}, {2, false}, {1, true}, {2, true}}

// scaling runs every fleet in each round, each round beginning with another.
func scaling(ctx context.Context, o WarmupOptions) (r ScalingResult, err error) {
	workers, info, stop, err := o.startWarm(ctx, 2, 1)
	defer stop()
	if err != nil {
		return r, err
	}
	prompts := warmPrompts(rand.New(rand.NewPCG(o.Seed, 2)), o.Prompts, 12, 256, 128)
	manifest, err := warmManifest(prompts)
	if err != nil {
		return r, err
	}
	r = ScalingResult{Rounds: o.Rounds, Prompts: o.Prompts}
	rates := make([][]float64, len(fleets))
	for round := range o.Rounds {
		for j := range fleets {
			i := (round + j) % len(fleets)
			if err := pause.For(ctx, settle); err != nil {
				return r, err
			}
			rate := 0.0
			if f := fleets[i]; f.bound {
				rate, err = computeOnly(ctx, prompts, r.Tokens, workers[:f.workers])
			} else {
				rate, r.Tokens, err = warmRate(ctx, manifest, fmt.Sprintf("scaling-%d-%d", round, i), info, workers[:f.workers])
			}
			if err != nil {
				return r, err
			}
			rates[i] = append(rates[i], rate)
			o.Step()
		}
	}
	r.One, r.Two, r.BoundOne, r.BoundTwo = rangeOf(rates[0]), rangeOf(rates[1]), rangeOf(rates[2]), rangeOf(rates[3])
	warm, bound := ratios(rates[1], rates[0]), ratios(rates[3], rates[2])
	r.Ratio, r.BoundRatio, r.OfBound = rangeOf(warm), rangeOf(bound), rangeOf(ratios(warm, bound))
	return r, nil
}

func warmRate(ctx context.Context, manifest, tenant string, info worker.WarmInfo, remotes []*warmup.Remote) (rate float64, tokens int64, err error) {
	var workers []warmup.Worker
	for _, w := range remotes {
		workers = append(workers, w)
	}
	r, err := warmUp(ctx, manifest, tenant, info, workers)
	return r.TokensPerSec, r.ComputedTokens, err
}

// computeOnly has workers compute whole prompts, until they have computed so many tokens, and keep nothing.
func computeOnly(ctx context.Context, prompts [][]int32, tokens int64, workers []*warmup.Remote) (rate float64, err error) {
	next, computed := make(chan []int32), int64(0)
	var mu sync.Mutex // guards computed and err
	var all sync.WaitGroup
	start := time.Now()
	for _, w := range workers {
		all.Go(func() {
			for p := range next {
				a, e := w.Measure(ctx, p)
				mu.Lock()
				err = errors.Join(err, e)
				computed += int64(a.ComputedTokens)
				mu.Unlock()
			}
		})
	}
	for i, handed := 0, int64(0); handed < tokens; i++ {
		p := prompts[i%len(prompts)]
		handed += int64(len(p))
		next <- p
	}
	close(next)
	all.Wait()
	return float64(computed) / time.Since(start).Seconds(), err
}

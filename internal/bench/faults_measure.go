package bench

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/kvtier/kvtier/worker"
)

const (
	// faultTurn is how many requests of a kind are sent before those of the other kind: spills of the first are not to slow down the second,
	// and the machine's mood changes slower than that.
	faultTurn = 5
	// faultTokens is how many tokens are generated, to be compared.
	faultTokens = 3
)

// pair is one prompt, with and without the cache.
type pair struct {
	with, plain time.Duration // to the first token
	same        bool
	failed      bool
	reused      float64
}

// measure sends each prompt to w with the cache and without.
func (b *faultBench) measure(ctx context.Context, w *FaultWorker, prompts [][]int32) ([]pair, error) {
	return b.compare(ctx, w, prompts, false)
}

// compare is measure; with control both are without the cache, and what differs is the machine's doing.
func (b *faultBench) compare(ctx context.Context, w *FaultWorker, prompts [][]int32, control bool) ([]pair, error) {
	pairs := make([]pair, len(prompts))
	tokens := make([][]int32, len(prompts))
	for turn := 0; turn*faultTurn < len(prompts); turn++ {
		from, to := turn*faultTurn, min((turn+1)*faultTurn, len(prompts))
		with := func() {
			for i := from; i < to; i++ {
				res, err := w.Replica.Complete(ctx, worker.Request{Tokens: prompts[i], MaxTokens: faultTokens, NoCache: control})
				if err != nil {
					pairs[i].failed = true
					continue
				}
				pairs[i].with = res.TTFT
				pairs[i].reused = float64(res.CachedTokens()) / float64(res.PromptTokens)
				pairs[i].same = tokens[i] == nil || slices.Equal(tokens[i], res.Tokens)
				tokens[i] = res.Tokens
			}
			// What is stored behind these requests must not slow down the others, which have no cache to blame.
			drained, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			_ = w.Cache.Flush(drained)
		}
		without := func() error {
			for i := from; i < to; i++ {
				res, err := w.Replica.Complete(ctx, worker.Request{Tokens: prompts[i], MaxTokens: faultTokens, NoCache: true})
				if err != nil {
					return fmt.Errorf("without a cache: %w", err)
				}
				pairs[i].plain = res.TTFT
				if tokens[i] != nil {
					pairs[i].same = slices.Equal(tokens[i], res.Tokens)
				}
				tokens[i] = res.Tokens
			}
			return nil
		}
		if turn%2 == 0 {
			with()
		}
		if err := without(); err != nil {
			return nil, err
		}
		if turn%2 == 1 {
			with()
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return pairs, nil
}

// summary makes a row of pairs.
func summary(pairs []pair) FaultRow {
	row := FaultRow{Requests: len(pairs), Identical: true}
	var with, plain, added []float64
	for _, p := range pairs {
		if p.failed {
			row.Failed++
			continue
		}
		row.Identical = row.Identical && p.same
		with, plain = append(with, ms(p.with)), append(plain, ms(p.plain))
		added = append(added, ms(p.with-p.plain))
		row.Reused += p.reused / float64(len(pairs))
	}
	if len(with) == 0 {
		row.Identical = false
		return row
	}
	row.P50Ms, row.P99Ms = quantile(with, 0.5), quantile(with, 0.99)
	row.PlainP50Ms, row.PlainP99Ms = quantile(plain, 0.5), quantile(plain, 0.99)
	row.P50Ratio, row.P99Ratio = row.P50Ms/row.PlainP50Ms, row.P99Ms/row.PlainP99Ms
	row.AddedP50Us, row.AddedMaxMs = 1000*quantile(added, 0.5), quantile(added, 1)
	return row
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile interpolates between neighbours. It sorts v.
func quantile(v []float64, q float64) float64 {
	slices.Sort(v)
	at := q * float64(len(v)-1)
	lower := v[int(math.Floor(at))]
	return lower + (at-math.Floor(at))*(v[int(math.Ceil(at))]-lower)
}

// again repeats prompts until there are n.
func again(prompts [][]int32, n int) [][]int32 {
	all := make([][]int32, n)
	for i := range all {
		all[i] = prompts[i%len(prompts)]
	}
	return all
}

// recovery waits, with a request every now and then, until w is served from Redis again.
func (b *faultBench) recovery(ctx context.Context, w *FaultWorker, prompt []int32) (*float64, error) {
	start := time.Now()
	for time.Since(start) < time.Minute {
		res, err := w.Replica.Complete(ctx, worker.Request{Tokens: prompt, MaxTokens: 1})
		if err != nil {
			return nil, err
		}
		if res.RemoteTokens > 0 {
			s := time.Since(start).Seconds()
			return &s, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, nil
}

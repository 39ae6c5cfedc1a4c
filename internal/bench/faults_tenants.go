package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kvtier/kvtier/worker"
)

const (
	// probes is how many prompts of each kind are asked at least: enough for the normal distribution.
	probes = 60
	// probeP is the p below which a difference is called one.
	probeP = 0.01
)

// tenantProbe lets one tenant look for what another has: it asks for prompts that the other has in the memory of this very worker and in Redis, and
// for prompts that nobody has, one of each in turn in random order, each once, because the second time it would find its own. Where the table has
// times without a cache, this row has those of prompts that nobody has. That the test would notice is shown by the owner: it asks for its own.
func tenantProbe(ctx context.Context, b *faultBench) (FaultRow, error) {
	w, err := b.start(ctx, true, faultHot, faultSpill)
	if err != nil {
		return FaultRow{}, err
	}
	n := max(probes, b.o.Requests)
	theirs, nobodys := b.prompts(n, b.o.NewTokens), b.prompts(n, b.o.NewTokens)
	ask := func(salt string, prompt []int32, plain bool) (worker.Result, error) {
		res, err := w.Replica.Complete(ctx, worker.Request{Tokens: prompt, Salt: salt, MaxTokens: faultTokens, NoCache: plain})
		if err == nil {
			err = w.Cache.Flush(ctx) // what is stored behind one request must not slow down the next
		}
		return res, err
	}
	for _, p := range theirs {
		if _, err := ask("owner", p, false); err != nil {
			return FaultRow{}, err
		}
	}
	pairs := make([]pair, n)
	for i := range pairs {
		pairs[i].same = true
		kinds := []struct {
			prompt []int32
			took   *time.Duration
		}{{theirs[i], &pairs[i].with}, {nobodys[i], &pairs[i].plain}}
		if b.random.IntN(2) == 0 {
			slices.Reverse(kinds)
		}
		for _, k := range kinds {
			res, err := ask("prober", k.prompt, false)
			if err != nil {
				pairs[i].failed = true
				break
			}
			*k.took = res.TTFT
			pairs[i].reused += float64(res.CachedTokens()) / float64(2*res.PromptTokens)
			want, err := ask("prober", k.prompt, true)
			if err != nil {
				return FaultRow{}, fmt.Errorf("without a cache: %w", err)
			}
			pairs[i].same = pairs[i].same && slices.Equal(res.Tokens, want.Tokens)
		}
	}
	var stored, unknown, own []float64
	for i, p := range pairs {
		if p.failed {
			continue
		}
		res, err := ask("owner", theirs[i], false)
		if err != nil {
			return FaultRow{}, err
		}
		stored, unknown, own = append(stored, ms(p.with)), append(unknown, ms(p.plain)), append(own, ms(res.TTFT))
	}
	row := summary(pairs)
	row.Requests *= 2
	if len(stored) < 2 {
		return row, nil
	}
	test, control := welch(stored, unknown), welch(own, unknown)
	row.Welch = &test
	row.Note = fmt.Sprintf("Welch's t %+.2f, Cohen's d %+.3f, p %.2f (normal approximation), %d prompts of each kind; the owner of the prompts, for whom they are hits: t %+.0f, d %+.1f",
		test.T, test.D, test.P, test.N, control.T, control.D)
	return row, nil
}

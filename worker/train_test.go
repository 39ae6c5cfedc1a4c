package worker_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/workertest"
)

// Cached K/V is ignored while gradients flow and afterwards: training touches no tier, and what it produces starts cold although the
// prompt was hot and stored a moment ago. The old weights, which other workers may still serve, keep their entries.
func TestTrainingPassesNeverUseTheCache(t *testing.T) {
	first, ok := enginetest.Tiny(t, 5).(*llama.Model)
	if !ok {
		t.Fatal("the tiny engine is no llama model")
	}
	r := workertest.Start(t, worker.Options{Engine: first, Label: "step 0", Gate: gate.Always},
		tiered.Options{Remote: memstore.New(memstore.Options{}), ProbeTimeout: 10 * time.Second, FetchTimeout: 10 * time.Second})
	prompt := make([]int32, 70)
	for i := range prompt {
		prompt[i] = int32(3 + i*7%200)
	}
	req := worker.Request{Tokens: prompt, MaxTokens: 8}
	complete(t, r, req)
	flush(t, r)
	if res := complete(t, r, req); res.CachedTokens() != 64 {
		t.Fatalf("%d cached tokens before training", res.CachedTokens())
	}

	trainer, err := llama.NewTrainer(first, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	before := r.Cache().Stats()
	var losses []float64
	for range 10 {
		loss, err := trainer.Step(t.Context(), prompt)
		if err != nil {
			t.Fatal(err)
		}
		losses = append(losses, loss)
	}
	after := r.Cache().Stats()
	if before.LookupBlocks != after.LookupBlocks || before.HotBlocks != after.HotBlocks || before.Spilled != after.Spilled {
		t.Errorf("training used the cache: %+v, then %+v", before, after)
	}
	if losses[9] >= losses[0] {
		t.Errorf("nothing was learnt: %v", losses)
	}
	// The weights before are served all the while, from the cache.
	if res := complete(t, r, req); res.CachedTokens() != 64 {
		t.Errorf("%d cached tokens on the weights that were not trained", res.CachedTokens())
	}

	if err := r.SwapWeights(t.Context(), "step 10", func(context.Context) (engine.Engine, error) { return trainer.Model() }); err != nil {
		t.Fatal(err)
	}
	got := complete(t, r, req)
	if got.CachedTokens() != 0 || got.Miss != tiered.MissCold {
		t.Errorf("first request on the trained weights: %d cached tokens, miss %v; want none, cold", got.CachedTokens(), got.Miss)
	}
	cold := complete(t, r, worker.Request{Tokens: prompt, MaxTokens: 8, NoCache: true})
	if !slices.Equal(got.Tokens, cold.Tokens) {
		t.Errorf("output %v, computed cold %v", got.Tokens, cold.Tokens)
	}
	if warm := complete(t, r, req); warm.CachedTokens() != 64 || !slices.Equal(warm.Tokens, cold.Tokens) {
		t.Errorf("%d cached tokens and output %v of the trained weights' own; want 64 and %v", warm.CachedTokens(), warm.Tokens, cold.Tokens)
	}
}

// pauseLog collects the pauses that the worker logs with its swaps.
type pauseLog struct {
	slog.Handler
	mu  sync.Mutex
	all []time.Duration
}

func (l *pauseLog) Enabled(context.Context, slog.Level) bool { return true }

func (l *pauseLog) Handle(_ context.Context, rec slog.Record) error {
	rec.Attrs(func(a slog.Attr) bool {
		if d, err := time.ParseDuration(a.Value.String()); a.Key == "pause" && err == nil {
			l.mu.Lock()
			l.all = append(l.all, d)
			l.mu.Unlock()
		}
		return true
	})
	return nil
}

// quantiles returns how many pauses there were, and their p50, p99 and maximum.
func (l *pauseLog) quantiles() (n int, p50, p99, most time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n = len(l.all); n == 0 {
		return
	}
	slices.Sort(l.all)
	return n, l.all[n/2], l.all[n*99/100], l.all[n-1]
}

// Row 18 of the fault matrix: a thousand swaps under traffic. Every answer is the one that its own weights give without a cache.
func TestAThousandSwapsUnderTraffic(t *testing.T) {
	swaps := 1000
	if testing.Short() {
		swaps = 50
	}
	pauses := new(pauseLog)
	r := workertest.Start(t, worker.Options{Engine: enginetest.Tiny(t, 1), Label: "1", Logger: slog.New(pauses)},
		tiered.Options{Remote: memstore.New(memstore.Options{}), HotBytes: 1 << 20})
	prompts := make([][]int32, 6)
	for i := range prompts {
		for j := range 34 + 16*(i%2) {
			prompts[i] = append(prompts[i], int32(3+(i/2*31+j*7)%200)) // pairs share a prefix
		}
	}
	expected := map[string][][]int32{} // by weights, what each prompt gives without a cache
	for seed := range uint64(3) {
		e := enginetest.Tiny(t, seed+1)
		alone := workertest.Start(t, worker.Options{Engine: e}, tiered.Options{})
		for _, p := range prompts {
			res := complete(t, alone, worker.Request{Tokens: p, MaxTokens: 3, NoCache: true})
			expected[e.Identity().Weights.String()] = append(expected[e.Identity().Weights.String()], res.Tokens)
		}
	}
	if len(expected) != 3 {
		t.Fatal("the weights are not three")
	}
	done := make(chan struct{})
	type tally struct{ requests, cached, wrong int }
	tallies := make(chan tally, 2)
	for g := range 2 {
		go func() {
			var n tally
			defer func() { tallies <- n }()
			for i := g; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				p := i * 5 % len(prompts)
				res, err := r.Complete(context.Background(), worker.Request{Tokens: prompts[p], MaxTokens: 3})
				if err != nil {
					t.Error(err)
					return
				}
				n.requests++
				n.cached += res.CachedTokens()
				if !slices.Equal(res.Tokens, expected[res.Identity.Weights.String()][p]) {
					n.wrong++
				}
			}
		}()
	}
	for i := range swaps {
		if err := r.SwapWeights(t.Context(), "next", func(context.Context) (engine.Engine, error) {
			return enginetest.Tiny(t, uint64(i+1)%3+1), nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	a, b := <-tallies, <-tallies
	t.Logf("%d swaps, %d requests, %d cached tokens, %d mismatches", swaps, a.requests+b.requests, a.cached+b.cached, a.wrong+b.wrong)
	n, p50, p99, most := pauses.quantiles()
	t.Logf("requests waited for a swap p50 %v, p99 %v, at most %v", p50.Round(time.Microsecond), p99.Round(time.Microsecond), most.Round(time.Microsecond))
	if n != swaps {
		t.Errorf("%d pauses were logged for %d swaps", n, swaps)
	}
	if a.wrong+b.wrong != 0 {
		t.Errorf("%d answers are not those of their weights", a.wrong+b.wrong)
	}
	if a.requests+b.requests < swaps/4 || a.cached+b.cached == 0 {
		t.Error("hardly any traffic: nothing was proved")
	}
}

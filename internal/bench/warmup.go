package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/kvtier/kvtier/warmup"
	"github.com/kvtier/kvtier/worker"
)

// WarmupOptions say how to measure warm-ups.
type WarmupOptions struct {
	// Server is the URL of a server that is empty, and flushed at the end; required.
	Server string
	// Start starts a worker process on the server, with so many threads, and returns its URL; required. stop ends it.
	Start func(ctx context.Context, threads int) (url string, stop func(), err error)
	// Rounds is how many pairs of windows, and how many runs of each kind.
	Rounds int
	// Window is how long requests are sent in each window.
	Window time.Duration
	// Rate is how many requests come each second, on average, whether the ones before are answered or not.
	Rate float64
	// PromptTokens and AnswerTokens are what a request has.
	PromptTokens, AnswerTokens int
	// Prompts is how many prompts the runs on one and two workers warm.
	Prompts int
	Seed    uint64
	// Step is called after each window and each run; see Steps.
	Step func()
}

// Steps is how often Step will be called.
func (o WarmupOptions) Steps() int { return (2 + len(fleets)) * o.Rounds }

// WarmupResult is what warm-ups cost those who are served, and what a second worker brings. JSON names are stable.
type WarmupResult struct {
	Serving ServingResult `json:"serving"`
	Scaling ScalingResult `json:"scaling"`
}

// Warmup measures both. The error is ErrNotEmpty if the server is not.
func Warmup(ctx context.Context, o WarmupOptions) (r WarmupResult, err error) {
	admin, err := openAdmin(ctx, o.Server)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, flushAndClose(ctx, admin)) }()
	if r.Serving, err = serving(ctx, o); err != nil {
		return r, fmt.Errorf("serving: %w", err)
	}
	if r.Scaling, err = scaling(ctx, o); err != nil {
		return r, fmt.Errorf("scaling: %w", err)
	}
	return r, nil
}

// warmPrompts are prompts of which each so many share what they begin with.
func warmPrompts(random *rand.Rand, n, sharing, shared, own int) (all [][]int32) {
	var preface []int32
	for i := range n {
		if i%sharing == 0 {
			preface = randomTokens(random, shared)
		}
		all = append(all, append(preface[:shared:shared], randomTokens(random, own)...))
	}
	return all
}

// warmManifest is prompts as a manifest.
func warmManifest(prompts [][]int32) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	for _, p := range prompts {
		if err := enc.Encode(map[string]any{"tokens": p}); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// warmUp has workers warm a manifest for a tenant that nothing is stored of yet.
func warmUp(ctx context.Context, manifest, tenant string, info worker.WarmInfo, workers []warmup.Worker) (r warmup.Report, err error) {
	source := warmup.TextSource("manifest", manifest)
	source.Salt = tenant
	plan, err := warmup.NewPlan(ctx, warmup.PlanOptions{Source: source, Encoder: warmup.LocalEncoder{}, BlockTokens: info.BlockTokens, ContextTokens: info.ContextTokens})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, plan.Close()) }()
	r, err = plan.Run(ctx, warmup.RunOptions{Workers: workers})
	if err == nil && (r.Failed > 0 || r.ComputedTokens != plan.Stats.UniqueBlocks*int64(info.BlockTokens)) {
		err = fmt.Errorf("bench: the warm-up computed %d tokens of %d blocks, %d prompts failed", r.ComputedTokens, plan.Stats.UniqueBlocks, r.Failed)
	}
	return r, err
}

// startWarm starts n workers of so many threads each.
func (o WarmupOptions) startWarm(ctx context.Context, n, threads int) (workers []*warmup.Remote, info worker.WarmInfo, stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	for range n {
		url, end, err := o.Start(ctx, threads)
		if err != nil {
			return nil, info, stop, err
		}
		stops = append(stops, end)
		w, err := warmup.NewRemote(url, "")
		if err != nil {
			return nil, info, stop, err
		}
		if info, err = w.Info(ctx); err != nil {
			return nil, info, stop, err
		}
		workers = append(workers, w)
	}
	return workers, info, stop, nil
}

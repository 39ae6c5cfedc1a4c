package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/warmup"
)

// fleetWarmer carries out a coordinator's warm-ups on the workers that it knows.
type fleetWarmer struct{ token string } // of the workers

var _ coordinator.Warmer = fleetWarmer{}

// remotes connects to those workers that answer, and says how many tokens a block has.
func (f fleetWarmer) remotes(ctx context.Context, workers []string, v block.Variant) (all []*warmup.Remote, blockTokens, contextTokens int, err error) {
	for _, at := range workers {
		r, e := warmup.NewRemote("http://"+at, f.token)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		r.Expect(v)
		if blockTokens == 0 {
			info, e := r.Info(ctx)
			if err = errors.Join(err, e); e == nil {
				blockTokens, contextTokens = info.BlockTokens, info.ContextTokens
			}
		}
		all = append(all, r)
	}
	if blockTokens == 0 {
		return nil, 0, 0, fmt.Errorf("%w: %w", warmup.ErrNoWorkers, err)
	}
	return all, blockTokens, contextTokens, nil
}

// sortBytes bounds the memory of a job in a coordinator; what is larger goes to disk.
const sortBytes = 32 << 20

func (f fleetWarmer) plan(ctx context.Context, spec coordinator.JobSpec, manifest string, remotes []*warmup.Remote, blockTokens, contextTokens int) (*warmup.Plan, error) {
	source := warmup.TextSource("manifest", manifest)
	source.Salt = spec.CacheSalt
	return warmup.NewPlan(ctx, warmup.PlanOptions{
		Source: source, Encoder: &warmup.RemoteEncoder{Workers: remotes}, BlockTokens: blockTokens, ContextTokens: contextTokens,
		Strict: spec.Strict, SortBytes: sortBytes,
	})
}

// Check implements coordinator.Warmer.
func (fleetWarmer) Check(spec coordinator.JobSpec, manifest string) error {
	return warmup.TextSource("manifest", manifest).Check(spec.Strict)
}

// Warm implements coordinator.Warmer.
func (f fleetWarmer) Warm(ctx context.Context, w coordinator.WarmWork) error {
	remotes, blockTokens, contextTokens, err := f.remotes(ctx, w.Workers, w.Variant)
	if err != nil {
		return err
	}
	plan, err := f.plan(ctx, w.Spec, w.Manifest, remotes, blockTokens, contextTokens)
	if err != nil {
		return err
	}
	defer plan.Close()
	done, err := w.Begin(fmt.Sprintf("%016x", plan.Digest))
	if err != nil {
		return err
	}
	var first error
	tell := func(r warmup.Report) {
		if b, err := json.Marshal(r); err == nil {
			w.Report(b)
		}
	}
	o := warmup.RunOptions{
		TokensPerSecond: w.Spec.TokensPerS, BytesPerSecond: w.Spec.BytesPerS, MaxBytes: w.Spec.BudgetBytes,
		Journal: tasksDone{done, w.Mark}, Progress: tell,
		Failed: func(err error) {
			if first == nil {
				first = err
			}
		},
	}
	for _, r := range remotes {
		o.Workers = append(o.Workers, r)
	}
	report, err := plan.Run(ctx, o)
	tell(report)
	if err == nil && report.Failed > 0 {
		err = errors.Join(fmt.Errorf("%d of %d prompts failed", report.Failed, report.Items+plan.Stats.Broken), first)
	}
	return err
}

// Release implements coordinator.Warmer.
func (f fleetWarmer) Release(ctx context.Context, workers []string, v block.Variant, manifest string) error {
	remotes, blockTokens, contextTokens, err := f.remotes(ctx, workers, v)
	if err != nil {
		return err
	}
	plan, err := f.plan(ctx, coordinator.JobSpec{}, manifest, remotes, blockTokens, contextTokens)
	if err != nil {
		return err
	}
	defer plan.Close()
	for req, err := range plan.Prompts(ctx) {
		if err == nil {
			err = remotes[0].Release(ctx, req.Tokens, req.Salt)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tasksDone is a warmup.Journal that a coordinator keeps.
type tasksDone struct {
	done func(int) bool
	mark func(int) error
}

func (t tasksDone) Done(task int) bool                     { return t.done(task) }
func (t tasksDone) Mark(_ context.Context, task int) error { return t.mark(task) }

// manifestText reads manifests as one text for a coordinator, which reads no files of its own.
func manifestText(source warmup.Source) (string, error) {
	var out strings.Builder
	enc := json.NewEncoder(&out)
	for it, err := range source.Items() {
		if err != nil {
			return "", err
		}
		line := map[string]any{}
		set := func(name string, v any, given bool) {
			if given {
				line[name] = v
			}
		}
		set("id", it.ID, it.ID != "")
		set("prompt", it.Prompt, it.Prompt != "")
		set("tokens", it.Tokens, it.Tokens != nil)
		set("messages", it.Messages, it.Messages != nil)
		set("cache_salt", it.Salt, it.Salt != "")
		set("priority", it.Priority, it.Priority != 0)
		set("pin", true, it.Pin)
		set("expect_hits", it.ExpectHits, it.ExpectHits != 0)
		if err := enc.Encode(line); err != nil {
			return "", err
		}
		if out.Len() > coordinator.MaxManifestBytes {
			return "", usagef("the manifest has more than %d bytes, with its templates filled in: use kvtier warmup run", coordinator.MaxManifestBytes)
		}
	}
	return out.String(), nil
}

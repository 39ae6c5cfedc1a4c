package main

import (
	"context"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/bench"
	"github.com/kvtier/kvtier/worker/llama"
)

type adviseFlags struct {
	*benchFlags
	model, layout string
	gbps          float64
}

func (f *benchFlags) newAdvise() *cobra.Command {
	a := &adviseFlags{benchFlags: f}
	cmd := f.withRemote(f.command("advise", "Say up to which prefill speed the tier pays for a model", `  kvtier bench advise --gbps 1.2                                  # all known models over 10 GbE
  kvtier bench advise --model Llama-3-8B --redis redis://cache:6379
  kvtier bench advise --layout layers=32,kv_heads=8,head_dim=128,dtype=bf16,heads=32,params=8e9 --gbps 3`, a.advise))
	cmd.Long = `advise divides the rate at which verified K/V arrives by the bytes of a token: fetching a prefix is faster than computing it as long as the worker's
prefill is slower than that many tokens per second. It measures the rate itself, with --redis, or takes it from --gbps.

"in Redis" is the memory that Redis needs for a token in blocks of 16 tokens: blocks of 256 KiB and more are cut to fill the size classes of its
allocator, smaller ones take up to 1.25 times their bytes.

With --model, or with heads and params in --layout, it also compares with GPUs on paper: peak × 40 to 50 %, divided by 2 FLOPs per parameter and token
plus 2 × layers × heads × head dim × context tokens for causal attention.`
	cmd.Flags().StringVar(&a.model, "model", "", "`name` of a model; without it and --layout, all known ones")
	cmd.Flags().StringVar(&a.layout, "layout", "", "`shape` of a model: layers=32,kv_heads=8,head_dim=128,dtype=bf16[,heads=32,params=8e9]")
	cmd.Flags().Float64Var(&a.gbps, "gbps", 0, "GB/s at which the tier delivers, instead of measuring it")
	return cmd
}

func (a *adviseFlags) advise(ctx context.Context, stderr io.Writer, r *benchReport) error {
	models, err := a.models(ctx)
	if err != nil {
		return err
	}
	gbps := a.gbps
	switch {
	case gbps < 0:
		return usagef("--gbps %g: want the rate at which the tier delivers, in GB/s", gbps)
	case gbps == 0 && a.redis == "":
		return usagef("no rate to advise on: give --redis URL to measure one, or --gbps if you know it (1.2 is 10 GbE, 3 is 25 GbE)")
	case gbps == 0:
		if err := a.remote(ctx, stderr, r); err != nil {
			return err
		}
		for _, row := range r.Remote { // the best of the connection counts and sizes that were asked for
			if row.Op == "get_verified" {
				gbps = max(gbps, row.GBps)
			}
		}
	}
	for _, m := range models {
		r.Advise = append(r.Advise, bench.Advise(m, gbps, a.gbps == 0))
	}
	return nil
}

func (a *adviseFlags) models(ctx context.Context) ([]bench.Model, error) {
	if a.layout != "" {
		if a.model != "" {
			return nil, usagef("--model and --layout exclude each other")
		}
		m, err := bench.ParseLayout(a.layout)
		if err != nil {
			return nil, usageError{err}
		}
		return []bench.Model{m}, nil
	}
	ours, err := shippedModel(ctx)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(bench.Models(), []bench.Model{ours})
	if a.model == "" {
		return all, nil
	}
	m, err := bench.FindModel(all, a.model)
	if err != nil {
		return nil, usageError{err}
	}
	return []bench.Model{m}, nil
}

// shippedModel reads the shape from the file itself.
func shippedModel(ctx context.Context) (bench.Model, error) {
	e, err := shipped(shippedV2, llama.Options{}).open(ctx)
	if err != nil {
		return bench.Model{}, err
	}
	defer e.Close()
	l := e.Layout()
	return bench.Model{Name: shippedV2, Layers: l.Layers, KVHeads: l.KVHeads, HeadDim: l.HeadDim, DType: l.DType, Source: "models/" + shippedV2 + ".gguf"}, nil
}

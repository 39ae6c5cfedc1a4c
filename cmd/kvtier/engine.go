package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llamacpp"
)

// The engines that a worker can run.
const (
	engineBuiltin  = "builtin"
	engineLlamaCPP = "llamacpp"
)

// engineFlags say what computes.
type engineFlags struct {
	engine   string
	llamaURL string
	llamaKey string
	slotsDir string
}

func (f *engineFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.engine, "engine", engineBuiltin, "what computes: builtin, or llamacpp for a llama-server beside this worker")
	fl.StringVar(&f.llamaURL, "llama-url", "", "`URL` of the llama-server; it needs --slot-save-path and --flash-attn on")
	fl.StringVar(&f.llamaKey, "llama-api-key", "", "the llama-server's --api-key")
	fl.StringVar(&f.slotsDir, "slots-dir", "", "the llama-server's --slot-save-path as this worker sees it; without it nothing is cached")
}

// sources returns what can be served, the first at the start. Only the built-in engine can serve one after the other.
func (f *workerFlags) sources(lo llama.Options, log *slog.Logger) ([]checkpoint, error) {
	switch f.engine {
	case engineBuiltin:
		if f.llamaURL != "" || f.slotsDir != "" || f.llamaKey != "" {
			return nil, usagef("--llama-url, --llama-api-key and --slots-dir need --engine llamacpp")
		}
		if len(f.checkpoints) == 0 {
			return shippedCheckpoints(lo), nil
		}
		return fileCheckpoints(f.checkpoints, lo), nil
	case engineLlamaCPP:
		if f.llamaURL == "" || len(f.checkpoints) != 1 || f.checkpointDir != "" {
			return nil, usagef("--engine llamacpp needs --llama-url and one --checkpoint, the file that llama-server has loaded: " +
				"its digest says whose K/V it is; for other weights start another llama-server and another worker")
		}
		if f.kvQuant != "none" {
			return nil, usagef("--kv-quant %s: --engine llamacpp caches K/V as llama-server has it", f.kvQuant)
		}
		o := llamacpp.Options{URL: f.llamaURL, APIKey: f.llamaKey, Checkpoint: f.checkpoints[0], SlotsDir: f.slotsDir, BlockTokens: f.blockTokens, Logger: log}
		return []checkpoint{{label: labelOf(o.Checkpoint), open: func(ctx context.Context) (engine.Engine, error) {
			e, err := llamacpp.Open(ctx, o)
			if err != nil {
				return nil, err // not a nil *Engine in an interface
			}
			return e, nil
		}}}, nil
	}
	return nil, usagef("--engine %q: want %s or %s", f.engine, engineBuiltin, engineLlamaCPP)
}

// degraded is an optional power of an engine that can lose its cache and serve on.
type degraded interface {
	// Degraded says why nothing is cached at the moment, "" if all is well.
	Degraded() string
}

// registerEngine exports what the engine counts by itself.
func registerEngine(r prometheus.Registerer, e engine.Engine) {
	l, ok := e.(*llamacpp.Engine) // never swapped for another
	if !ok {
		return
	}
	counter := func(name, help string, labels prometheus.Labels, value func(llamacpp.Stats) float64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return value(l.Stats()) }))
	}
	const tokens, tokensHelp = "kvtier_llama_prompt_tokens_total", "Prompt tokens by what llama-server says that it did: found them in its slot (also those restored there), or computed them."
	counter(tokens, tokensHelp, prometheus.Labels{"source": "slot"}, func(s llamacpp.Stats) float64 { return float64(s.ReusedTokens) })
	counter(tokens, tokensHelp, prometheus.Labels{"source": "computed"}, func(s llamacpp.Stats) float64 { return float64(s.ComputedTokens) })
	const files, filesHelp = "kvtier_llama_slot_files_total", "Slot files exchanged with llama-server."
	counter(files, filesHelp, prometheus.Labels{"outcome": "restored"}, func(s llamacpp.Stats) float64 { return float64(s.Restored) })
	counter(files, filesHelp, prometheus.Labels{"outcome": "saved"}, func(s llamacpp.Stats) float64 { return float64(s.Saved) })
	counter(files, filesHelp, prometheus.Labels{"outcome": "failed"}, func(s llamacpp.Stats) float64 { return float64(s.Failed) })
	counter("kvtier_llama_compute_seconds_total", "How long llama-server says that it computed, summed over requests.", nil,
		func(s llamacpp.Stats) float64 { return s.Computing.Seconds() })
}

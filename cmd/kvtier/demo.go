package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// demoTimeout ends a demo that hangs, for instance on a Redis that answers nothing.
const demoTimeout = 5 * time.Minute

func newDemo() *cobra.Command {
	var redisURL string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the main job once, for real: two workers, a coordinator, a weight swap, an outage",
		Long: `demo starts a coordinator and two workers with the shipped model in this process and, unless --redis names one, a Redis of its own. It sends
prompts with shared prefixes to the workers in turn, swaps the weights, takes Redis away and brings it back, and compares
every output with that of the same request without any cache.

It exits 0 only if every output was identical, every scenario had remote hits on the worker that had not computed the prefix, and no token
of other weights was used; otherwise it says which promise failed and exits 1. On a real Redis it uses names of its own and removes
them at the end.`,
		Example: "  kvtier demo\n  kvtier demo --redis redis://127.0.0.1:6379\n  kvtier demo --json | jq .summary",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoTimeout)
			defer cancel()
			report, err := runDemo(ctx, redisURL, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return report.show(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&redisURL, "redis", "", "`URL` of a Redis to use instead of the embedded one, also from REDIS_URL: redis://[user:password@]host:port")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return cmd
}

// demoRow is one request, measured with and without the cache. Field names are stable.
type demoRow struct {
	Phase     string  `json:"phase"` // reuse, swap, back, outage or recovery
	Scenario  string  `json:"scenario"`
	Worker    int     `json:"worker"`
	Version   string  `json:"version"`
	Variant   string  `json:"variant"`
	Prompt    int     `json:"prompt_tokens"`
	Hot       int     `json:"hot_tokens"`
	Remote    int     `json:"remote_tokens"`
	Computed  int     `json:"computed_tokens"`
	TTFT      float64 `json:"ttft_ms"`
	NoCache   float64 `json:"ttft_nocache_ms"`
	Identical bool    `json:"identical"`
	Degraded  bool    `json:"degraded"`
	Miss      string  `json:"miss"`
}

// demoReport is what demo --json prints.
type demoReport struct {
	Redis    string        `json:"redis"`
	Requests []demoRow     `json:"requests"`
	Summary  demoSummary   `json:"summary"`
	Swap     demoSwap      `json:"swap"`
	Outage   demoOutage    `json:"outage"`
	Seconds  float64       `json:"seconds"`
	Broken   []string      `json:"broken_promises"`
	took     time.Duration // Seconds, for people
}

type demoSummary struct {
	ReusedRatio float64 `json:"reused_token_ratio"` // of the prompt tokens of the reuse phase
	TTFTCold    float64 `json:"ttft_cold_ms"`       // medians of the reuse phase
	TTFTHot     float64 `json:"ttft_hot_ms"`
	TTFTRemote  float64 `json:"ttft_remote_ms"`
	RatioCold   float64 `json:"ttft_ratio_cold"` // median of TTFT ÷ TTFT of the same request without any cache
	RatioHot    float64 `json:"ttft_ratio_hot"`
	RatioRemote float64 `json:"ttft_ratio_remote"`
	Identical   bool    `json:"identical"`    // every output of every phase
	StaleTokens int     `json:"stale_tokens"` // cached tokens used where nothing valid could exist
}

type demoSwap struct {
	FirstCached     int   `json:"first_request_cached_tokens"` // of both workers' first requests after the swap
	LaterCached     int   `json:"later_requests_cached_tokens"`
	OldKeysLeft     int   `json:"old_keys_left"`
	BackFirstCached int   `json:"back_first_request_cached_tokens"`
	Milliseconds    int64 `json:"milliseconds"` // from the request to activate until both workers serve the new weights
}

type demoOutage struct {
	Requests  int   `json:"requests"`
	Failed    int   `json:"failed"`
	Identical bool  `json:"identical"`
	Degraded  int   `json:"degraded"`  // requests that noticed
	HitsBack  bool  `json:"hits_back"` // remote hits after the end
	Recovery  int64 `json:"recovery_ms"`
}

var errPromiseBroken = errors.New("a promise was broken")

func (r *demoReport) show(w io.Writer, asJSON bool) error {
	if asJSON {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else if err := r.print(w); err != nil {
		return err
	}
	if len(r.Broken) > 0 {
		return fmt.Errorf("%w: %s", errPromiseBroken, r.Broken[0])
	}
	return nil
}

func (r *demoReport) print(w io.Writer) error {
	t := newTable("phase", "scenario", "worker", "weights", "prompt", "hot", "remote", "computed", "TTFT", "no cache", "ratio", "output")
	for _, x := range r.Requests {
		output := "identical"
		if !x.Identical {
			output = "DIFFERENT"
		}
		if x.Degraded {
			output += ", degraded"
		}
		t.row(x.Phase, x.Scenario, fmt.Sprint(x.Worker), x.Version, fmt.Sprint(x.Prompt), fmt.Sprint(x.Hot), fmt.Sprint(x.Remote), fmt.Sprint(x.Computed),
			fmt.Sprintf("%.1f ms", x.TTFT), fmt.Sprintf("%.1f ms", x.NoCache), fmt.Sprintf("%.2f", x.TTFT/x.NoCache), output)
	}
	if err := t.print(w); err != nil {
		return err
	}
	s := r.Summary
	fmt.Fprintf(w, `
reuse     %.0f %% of the prompt tokens were not recomputed
          TTFT, median: cold %.1f ms, from the hot tier %.1f ms, from Redis %.1f ms
          compared with no cache: cold %.2f, hot %.2f, Redis %.2f
weights   swapped on both workers within %d ms; first requests afterwards reused %d tokens, later ones %d
          entries of the old weights left in Redis: %d; reused after going back: %d
outage    %d requests without Redis: %d failed, %d degraded; hits back: %s, %d ms after Redis
`, 100*s.ReusedRatio, s.TTFTCold, s.TTFTHot, s.TTFTRemote, s.RatioCold, s.RatioHot, s.RatioRemote,
		r.Swap.Milliseconds, r.Swap.FirstCached, r.Swap.LaterCached, r.Swap.OldKeysLeft, r.Swap.BackFirstCached,
		r.Outage.Requests, r.Outage.Failed, r.Outage.Degraded, yesNo(r.Outage.HitsBack), r.Outage.Recovery)
	verdict := "all outputs identical with and without the cache, no stale token"
	if len(r.Broken) > 0 {
		verdict = "BROKEN"
	}
	fmt.Fprintf(w, "promises  %s (%s, %.1f s)\n", verdict, r.Redis, r.took.Seconds())
	for _, b := range r.Broken {
		fmt.Fprintf(w, "          broken: %s\n", b)
	}
	return nil
}

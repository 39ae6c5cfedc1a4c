package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

type warmupOptions struct {
	workers []string
	token   string
	salt    string
	timeout time.Duration
	asJSON  bool
}

// warmupReport is what --json prints; field names are stable.
type warmupReport struct {
	Items          int     `json:"items"`
	Failed         int     `json:"failed"`
	PromptTokens   int     `json:"prompt_tokens"`
	ComputedTokens int     `json:"computed_tokens"`
	SkippedTokens  int     `json:"skipped_tokens"`
	Seconds        float64 `json:"seconds"`
	TokensPerSec   float64 `json:"tokens_per_s"`
}

func newWarmup() *cobra.Command {
	var o warmupOptions
	cmd := &cobra.Command{
		Use:   "warmup FILE",
		Short: "Have the workers compute and share the prefixes of a file's prompts",
		Long: `warmup sends every line of FILE (- is standard input) as a prompt to one of the workers, which computes what the tier does not have yet
and shares it. Prompts that begin alike go to the same worker one after the other, so that what they share is computed once.`,
		Example: "  kvtier warmup prompts.txt --worker http://127.0.0.1:8081 --worker http://127.0.0.1:8082",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			prompts, err := readPrompts(a[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			for _, w := range o.workers {
				if err := checkWorkerURL(w); err != nil {
					return err
				}
			}
			return warmup(cmd.Context(), prompts, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringSliceVar(&o.workers, "worker", []string{"http://127.0.0.1:8080"}, "base `URL` of a worker; repeat for more")
	cmd.Flags().StringVar(&o.token, "token", "", "bearer token of the workers")
	cmd.Flags().StringVar(&o.salt, "cache-salt", "", "tenant to warm for")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "for one prompt")
	cmd.Flags().BoolVar(&o.asJSON, "json", false, "print one JSON object at the end instead of a line")
	return cmd
}

// maxPromptLine bounds a line: no worker takes a longer request.
const maxPromptLine = 1 << 20

func readPrompts(path string, stdin io.Reader) ([]string, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usagef("%w", err)
		}
		defer f.Close()
		in = f
	}
	var prompts []string
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxPromptLine)
	n := 0
	for lines.Scan() {
		n++
		if line := lines.Text(); strings.TrimSpace(line) != "" {
			prompts = append(prompts, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, usagef("%s: line %d: %w", path, n+1, err)
	}
	if len(prompts) == 0 {
		return nil, usagef("%s: no prompts in it: want one per line", path)
	}
	return prompts, nil
}

// affinityBytes is how much of a prompt decides which worker gets it: prompts that share a prefix worth sharing agree in it.
const affinityBytes = 64

// assign spreads prompts over n queues: those that begin alike stay together, in their order, and go to the shortest queue so far.
func assign(prompts []string, n int) [][]string {
	queues := make([][]string, n)
	home := map[string]int{}
	for _, p := range prompts {
		begin := p[:min(len(p), affinityBytes)]
		at, ok := home[begin]
		if !ok {
			for i := range queues {
				if len(queues[i]) < len(queues[at]) {
					at = i
				}
			}
			home[begin] = at
		}
		queues[at] = append(queues[at], p)
	}
	return queues
}

func warmup(ctx context.Context, prompts []string, o warmupOptions, stdout, stderr io.Writer) error {
	start := time.Now()
	queues := assign(prompts, len(o.workers))
	report := warmupReport{Items: len(prompts)}
	bar := newProgress(stderr, "warming up", len(prompts))
	var mu sync.Mutex
	var first error
	var wg sync.WaitGroup
	for i, queue := range queues {
		wg.Go(func() {
			for _, p := range queue {
				usage, err := warmOne(ctx, o.workers[i], p, o)
				mu.Lock()
				if err != nil {
					report.Failed++
					if first == nil {
						first = err
					}
				} else {
					report.PromptTokens += usage.PromptTokens
					report.SkippedTokens += usage.Details.CachedTokens
					report.ComputedTokens += usage.PromptTokens - usage.Details.CachedTokens
				}
				mu.Unlock()
				bar.step()
			}
		})
	}
	wg.Wait()
	bar.done()
	report.Seconds = time.Since(start).Seconds()
	report.TokensPerSec = float64(report.PromptTokens) / report.Seconds
	if o.asJSON {
		if err := json.NewEncoder(stdout).Encode(report); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(stdout, "warmed %d of %d prompts in %.1f s: %d tokens computed, %d already there (%.0f tokens/s)\n",
			report.Items-report.Failed, report.Items, report.Seconds, report.ComputedTokens, report.SkippedTokens, report.TokensPerSec)
	}
	if report.Failed > 0 {
		return fmt.Errorf("%d of %d prompts failed; the first: %w", report.Failed, report.Items, first)
	}
	return nil
}

// warmUsage is the part of a worker's answer that is reported.
type warmUsage struct {
	PromptTokens int `json:"prompt_tokens"`
	Details      struct {
		CachedTokens int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

func warmOne(ctx context.Context, worker, prompt string, o warmupOptions) (warmUsage, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	request := map[string]any{"prompt": prompt, "max_tokens": 0, "temperature": 0}
	if o.salt != "" {
		request["cache_salt"] = o.salt
	}
	answer, err := postWorker(ctx, worker, "/v1/completions", o.token, request)
	if err != nil {
		return warmUsage{}, err
	}
	var a struct {
		Usage *warmUsage `json:"usage"`
	}
	if err := json.Unmarshal(answer, &a); err != nil || a.Usage == nil {
		return warmUsage{}, errors.Join(fmt.Errorf("%s answered something that is no completion", worker), err)
	}
	return *a.Usage, nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/worker"
)

type explainFlags struct {
	worker, token, file, salt string
	every, asJSON             bool
}

func newExplain() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain [PROMPT]",
		Short: "Say where a prompt's K/V would come from, block by block, and why",
		Long: `explain asks a worker what it would do with a prompt: which blocks are in its memory or in Redis, which it would load or compute by what it has
measured, and why the others are nowhere. Nothing is computed and nothing changes. The prompt has to be exactly what a client sends,
and so has the tenant's cache_salt: K/V of one tenant is not found, and not shown, under another.

Reasons: cold (never seen here), evicted, expired, epoch (purged), tenant, variant, version, corrupt, oversize, incomplete (parts are missing), unshared
(no lease or no Redis), breaker, deadline, fault, budget, gate (computing is faster).`,
		Example: `  kvtier explain "To be, or not to be, that is the question"
  kvtier explain --file prompt.txt --worker http://127.0.0.1:8081 --salt tenant-a
  kvtier explain --file - --json < prompt.txt`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			prompt, err := f.prompt(cmd.InOrStdin(), a)
			if err != nil {
				return err
			}
			x, err := f.ask(cmd.Context(), prompt)
			if err != nil {
				return err
			}
			if f.asJSON {
				return printJSON(cmd.OutOrStdout(), x)
			}
			return f.show(cmd.OutOrStdout(), x)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.worker, "worker", "http://127.0.0.1:8080", "`URL` of the worker")
	fl.StringVar(&f.token, "worker-token", "", "bearer token of the worker")
	fl.StringVar(&f.file, "file", "", "`file` with the prompt, - for standard input")
	fl.StringVar(&f.salt, "salt", "", "the tenant's cache_salt")
	fl.BoolVar(&f.every, "every", false, "a line for every block instead of one for each run of alike ones")
	fl.BoolVar(&f.asJSON, "json", false, "print the worker's answer: POST /v1/explain in its openapi.yaml")
	return cmd
}

func (f *explainFlags) prompt(stdin io.Reader, a []string) (string, error) {
	switch {
	case len(a) == 1 && f.file != "":
		return "", usagef("give a prompt or --file, not both")
	case len(a) == 1:
		return a[0], nil
	case f.file == "":
		return "", usagef("no prompt: give it as an argument or with --file")
	case f.file == "-":
		b, err := io.ReadAll(stdin)
		return string(b), err
	}
	b, err := os.ReadFile(f.file)
	if err != nil {
		return "", usageError{err}
	}
	return string(b), nil
}

func (f *explainFlags) ask(ctx context.Context, prompt string) (x worker.Explanation, err error) {
	if err := checkWorkerURL(f.worker); err != nil {
		return x, err
	}
	request := map[string]string{"prompt": prompt}
	if f.salt != "" {
		request["cache_salt"] = f.salt
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	b, err := postWorker(ctx, f.worker, "/v1/explain", f.token, request)
	if err != nil {
		if e, ok := errors.AsType[*httpapi.Error](err); ok && e.Status >= 400 && e.Status < 500 {
			return x, usageError{err}
		}
		return x, err
	}
	if err := json.Unmarshal(b, &x); err != nil || x.BlockTokens == 0 {
		return x, fmt.Errorf("%s: not the answer of a kvtier worker", f.worker)
	}
	return x, nil
}

func (f *explainFlags) show(w io.Writer, x worker.Explanation) error {
	e := x.Estimates
	fmt.Fprintf(w, "%d tokens in %d blocks of %d, and %d that are always computed; %s, variant %s, epoch %d, access %s\n",
		x.Tokens, len(x.Blocks), x.BlockTokens, x.Uncached, x.Label, x.Variant, x.Epoch, x.Access)
	measured := "not measured yet"
	if e.BytesPerSecond > 0 {
		measured = fmt.Sprintf("%.2f ms and %s/s", e.RTTms, humanize.Bytes(uint64(e.BytesPerSecond)))
	}
	engine := "not measured yet"
	if e.TokenMicros > 0 || e.PositionMicros > 0 {
		engine = fmt.Sprintf("%.1f µs a token, and %.1f more for each 1,000 before it", e.TokenMicros, e.PositionMicros)
	}
	fmt.Fprintf(w, "remote tier: %s; engine: %s\n", measured, engine)
	fmt.Fprintf(w, "gate %s: %s", x.Gate, x.Choice)
	if !x.Asks && slices.ContainsFunc(x.Blocks, func(b worker.ExplainedBlock) bool { return b.Found != "hot" }) {
		fmt.Fprint(w, ", without asking the remote tier")
	}
	if e.ComputeMs > 0 {
		fmt.Fprintf(w, " (what the remote tier has: %.1f ms to load, %.1f to compute, %.1f to do both)", e.LoadMs, e.ComputeMs, e.BothMs)
	}
	fmt.Fprint(w, "\n\n")
	if len(x.Blocks) == 0 {
		_, err := fmt.Fprintf(w, "short: the prompt fills no block of %d tokens before its last token, so that nothing is looked for\n", x.BlockTokens)
		return err
	}
	t := newTable("blocks", "tokens", "hash", "found", "reason", "action")
	for i := 0; i < len(x.Blocks); {
		b, end := x.Blocks[i], i+1
		for !f.every && end < len(x.Blocks) && alike(b, x.Blocks[end]) {
			end++
		}
		blocks := fmt.Sprint(i)
		if end > i+1 {
			blocks = fmt.Sprintf("%d-%d", i, end-1)
		}
		reason := b.Reason
		if reason == "none" {
			reason = ""
		}
		t.row(blocks, fmt.Sprintf("%d-%d", b.Token, x.Blocks[end-1].Token+x.BlockTokens-1), b.Hash, b.Found, reason, b.Action)
		i = end
	}
	return t.print(w)
}

func alike(a, b worker.ExplainedBlock) bool {
	return a.Found == b.Found && a.Reason == b.Reason && a.Action == b.Action
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/warmup"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

const warmupLong = `run reads manifests and has workers compute and store what the tier does not have yet. A file that ends in .jsonl has one JSON object per line:

  {"id": "greeting", "prompt": "Good morrow, Kate"}
  {"tokens": [17, 4, 99], "cache_salt": "acme", "priority": 5, "pin": true, "expect_hits": 1000}
  {"define": "system", "text": "You are a helpful player. {{style}}"}
  {"template": "system", "vars": {"style": {"file": "style.txt"}}}

Any other file has one prompt per line (--whole-files: is one prompt); patterns such as 'prompts/*.txt' and - for standard input work too. Only full
blocks are stored. What prompts share is found first and computed once, longest first; broken lines are reported and left out (--strict stops).

With --checkpoint it computes by itself, for weights that nobody serves yet, while workers go on serving others.`

// warmupFlags are the flags of run.
type warmupFlags struct {
	workers     []string
	token       string
	salt        string
	whole       bool
	strict      bool
	dryRun      bool
	lookUp      bool
	asJSON      bool
	vocabulary  string
	journal     string
	restart     bool
	concurrency int
	lease       time.Duration
	giveUp      time.Duration
	tokensPerS  float64
	bytesPerS   byteSize
	budget      byteSize
	jitter      time.Duration

	checkpoint       string
	blockTokens      int
	redis            string
	controlRedis     string
	coordinatorURL   string
	coordinatorToken string
	model            string
	secret           string
	ttl              time.Duration
	activate         bool
}

func newWarmup() *cobra.Command {
	cmd := newWarmupRun("warmup [MANIFEST...]")
	cmd.Short = "Fill the tier before traffic arrives"
	cmd.Long = "warmup MANIFEST is short for warmup run MANIFEST.\n\n" + warmupLong
	run := cmd.RunE
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		if len(a) == 0 {
			return cmd.Help()
		}
		return run(cmd, a)
	}
	cmd.AddCommand(newWarmupRun("run MANIFEST..."))
	cmd.AddCommand(newWarmupExport(), newWarmupImport())
	cmd.AddCommand(newWarmupJobs()...)
	return cmd
}

func newWarmupRun(use string) *cobra.Command {
	var f warmupFlags
	cmd := &cobra.Command{
		Use:   use,
		Short: "Have workers compute and store what manifests say",
		Long:  warmupLong,
		Example: `  kvtier warmup run prompts.txt --worker http://127.0.0.1:8081 --worker http://127.0.0.1:8082
  kvtier warmup run manifest.jsonl --dry-run --redis redis://127.0.0.1:6379
  kvtier warmup run manifest.jsonl --journal job.journal --tokens-per-s 500 --budget 2GiB
  kvtier warmup run manifest.jsonl --checkpoint new.gguf --redis redis://127.0.0.1:6379 \
      --coordinator http://127.0.0.1:8090 --activate-when-done`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error { return f.run(cmd, a) },
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.workers, "worker", []string{"http://127.0.0.1:8080"}, "base `URL` of a worker; repeat for more")
	fl.StringVar(&f.token, "token", "", "bearer token of the workers")
	fl.StringVar(&f.salt, "cache-salt", "", "tenant of prompts that name none")
	fl.BoolVar(&f.whole, "whole-files", false, "a file that is not JSONL is one prompt, not one per line")
	fl.BoolVar(&f.strict, "strict", false, "stop at the first broken line")
	fl.BoolVar(&f.dryRun, "dry-run", false, "plan, measure and print, compute nothing that is kept")
	fl.BoolVar(&f.lookUp, "look-up", false, "with --dry-run: look up every prompt, and count only what is not stored yet")
	fl.BoolVar(&f.asJSON, "json", false, "print one JSON object at the end")
	fl.StringVar(&f.vocabulary, "vocabulary", "", "GGUF `file` whose vocabulary turns prompts into tokens (default: the shipped models', or ask the workers)")
	fl.StringVar(&f.journal, "journal", "", "`file` that notes what is done; with it a run goes on where an earlier one ended")
	fl.BoolVar(&f.restart, "restart", false, "begin the journal anew")
	fl.IntVar(&f.concurrency, "concurrency", 1, "tasks that a worker has at once")
	fl.DurationVar(&f.lease, "lease", 2*time.Minute, "how long a worker may take for a task before another gets it")
	fl.DurationVar(&f.giveUp, "give-up", 2*time.Minute, "how long to wait while no worker answers")
	fl.Float64Var(&f.tokensPerS, "tokens-per-s", 0, "bound on computed tokens per second; 0 for none")
	fl.Var(&f.bytesPerS, "bytes-per-s", "bound on stored bytes per second; 0 for none")
	fl.Var(&f.budget, "budget", "bytes to store at most; the run ends when they are used up, 0 for no bound")
	fl.DurationVar(&f.jitter, "jitter", 0, "random wait up to this before each task, and a random one of the next tasks: jobs that run at the same time part")
	fl.StringVar(&f.checkpoint, "checkpoint", "", "GGUF `file` to compute with in this process, beside workers that serve other weights; needs --redis")
	fl.IntVar(&f.blockTokens, "block-tokens", 0, "with --checkpoint: tokens per block, as the workers have it (default 16)")
	fl.StringVar(&f.redis, "redis", "", "`URL` of the shared tier: for --checkpoint, and for what --dry-run says of its memory")
	fl.StringVar(&f.controlRedis, "control-redis", "", "`URL` of the server with the control records (default: --redis)")
	fl.StringVar(&f.coordinatorURL, "coordinator", "", "`URL` of the coordinator: for --checkpoint")
	fl.StringVar(&f.coordinatorToken, "coordinator-token", "", "bearer token of the coordinator")
	fl.StringVar(&f.model, "model", "shakespeare", "`name` of the model: for --checkpoint")
	fl.StringVar(&f.secret, "secret", "", "with --checkpoint: the cluster secret, as the workers have it")
	fl.DurationVar(&f.ttl, "ttl", 6*time.Hour, "with --checkpoint: how long stored entries live")
	fl.BoolVar(&f.activate, "activate-when-done", false, "with --checkpoint: make these weights active when everything is stored, and only then")
	return cmd
}

func (f *warmupFlags) validate() error {
	switch {
	case f.activate && (f.checkpoint == "" || f.coordinatorURL == ""):
		return usagef("--activate-when-done needs --checkpoint and --coordinator")
	case f.checkpoint != "" && f.redis == "":
		return usagef("--checkpoint needs --redis: what is computed here has to go somewhere")
	case f.lookUp && !f.dryRun:
		return usagef("--look-up goes with --dry-run: a run looks up everything anyway")
	case f.restart && f.journal == "":
		return usagef("--restart needs --journal")
	case f.concurrency < 1 || f.lease <= 0 || f.giveUp <= 0 || f.tokensPerS < 0 || f.jitter < 0:
		return usagef("--concurrency, --lease and --give-up have to be positive, --tokens-per-s and --jitter not negative")
	case len(f.workers) == 0 && f.checkpoint == "":
		return usagef("no --worker")
	}
	return nil
}

// crew is who does the work, and for which weights.
type crew struct {
	workers   []warmup.Worker
	remotes   []*warmup.Remote // those of them that are asked over HTTP
	info      worker.WarmInfo
	tokenizer warmup.Tokenizer // nil where only the workers have the vocabulary
	own       *ownWorker       // with --checkpoint
}

func (f *warmupFlags) run(cmd *cobra.Command, manifests []string) (err error) {
	if err := f.validate(); err != nil {
		return err
	}
	source, cleanup, err := warmup.OpenSource(manifests, f.whole, cmd.InOrStdin())
	defer cleanup()
	if err != nil {
		return usageError{err}
	}
	source.Salt = f.salt
	if empty, err := source.Empty(); err != nil || empty {
		return usageError{errors.Join(err, fmt.Errorf("%v: no prompts in it: want one per line", manifests))}
	}
	ctx, stop := context.WithCancelCause(cmd.Context())
	defer stop(nil)
	c, err := f.crew(ctx)
	if err != nil {
		return err
	}
	if c.own != nil {
		defer func() { err = errors.Join(err, c.own.Close()) }()
		go c.own.watch(ctx, stop)
	}
	screen := newWarmupScreen(cmd.ErrOrStderr(), f.asJSON)
	plan, err := f.plan(ctx, source, c, screen)
	if err != nil {
		return err
	}
	defer plan.Close()
	if f.dryRun {
		return f.estimate(ctx, plan, c, cmd.OutOrStdout())
	}
	if plan.Stats.Prompts == 0 {
		return usagef("no prompts in it: %d lines, none of which can be used", plan.Stats.Broken)
	}
	report, err := f.warm(ctx, plan, c, screen)
	if perr := printWarmupReport(cmd.OutOrStdout(), report, f.asJSON); perr != nil {
		return errors.Join(err, perr)
	}
	switch {
	case err != nil:
		return err
	case report.Failed > 0 && f.activate:
		return fmt.Errorf("%d of %d prompts failed: not activated", report.Failed, report.Items+plan.Stats.Broken)
	case report.Failed > 0:
		return fmt.Errorf("%d of %d prompts failed", report.Failed, report.Items+plan.Stats.Broken)
	case f.activate:
		return c.own.activate(ctx, cmd.ErrOrStderr())
	}
	return nil
}

// crew finds out who works and for what: all workers have to serve one variant.
func (f *warmupFlags) crew(ctx context.Context) (*crew, error) {
	if f.checkpoint != "" {
		return f.ownCrew(ctx)
	}
	c := &crew{}
	var down error
	for _, url := range f.workers {
		r, err := warmup.NewRemote(url, f.token)
		if err != nil {
			return nil, usagef("--worker: %w", err)
		}
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		info, err := r.Info(ask)
		cancel()
		c.workers, c.remotes = append(c.workers, r), append(c.remotes, r)
		switch {
		case err != nil:
			down = errors.Join(down, err)
		case c.info.BlockTokens == 0:
			c.info = info
		case info.Variant != c.info.Variant:
			return nil, fmt.Errorf("workers serve different weights: %s has %v (%s), others %v (%s): warm them one after the other",
				url, info.Variant, info.Label, c.info.Variant, c.info.Label)
		}
	}
	if c.info.BlockTokens == 0 {
		return nil, fmt.Errorf("no worker answers: %w", down)
	}
	if !c.info.Shared {
		return nil, fmt.Errorf("%w: start workers with --redis, and look at their /readyz", warmup.ErrWorker)
	}
	for _, r := range c.remotes {
		r.Expect(c.info.Variant)
	}
	var err error
	c.tokenizer, err = f.localVocabulary(ctx, c.info)
	return c, err
}

// localVocabulary is a tokenizer of the workers' model, if there is one here: tokens need not be asked for then.
func (f *warmupFlags) localVocabulary(ctx context.Context, info worker.WarmInfo) (warmup.Tokenizer, error) {
	lo := llama.Options{BlockTokens: info.BlockTokens}
	candidates := shippedCheckpoints(lo)
	if f.vocabulary != "" {
		candidates = fileCheckpoints([]string{f.vocabulary}, lo)
	}
	for _, ck := range candidates {
		e, err := ck.open(ctx)
		if err != nil && f.vocabulary != "" {
			return nil, usageError{err}
		}
		if err != nil {
			continue
		}
		if e.Identity().Weights == info.Weights || f.vocabulary != "" {
			return vocabularyOf(e), nil
		}
		if err := e.Close(); err != nil {
			return nil, err
		}
	}
	return nil, nil //nolint:nilnil // none is a normal answer: the workers have one
}

func vocabularyOf(e engine.Engine) warmup.Tokenizer { return e.Tokenizer() }

func (f *warmupFlags) plan(ctx context.Context, source warmup.Source, c *crew, screen *warmupScreen) (*warmup.Plan, error) {
	var encoder warmup.Encoder
	if len(c.remotes) > 0 {
		encoder = &warmup.RemoteEncoder{Workers: c.remotes}
	}
	if c.tokenizer != nil {
		encoder = warmup.LocalEncoder{Tokenizer: c.tokenizer, Chat: encoder}
	}
	plan, err := warmup.NewPlan(ctx, warmup.PlanOptions{
		Source: source, Encoder: encoder, BlockTokens: c.info.BlockTokens, ContextTokens: c.info.ContextTokens,
		Strict: f.strict, Broken: screen.broken, Progress: screen.planning,
	})
	if errors.Is(err, warmup.ErrLine) || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		err = usageError{err}
	}
	return plan, err
}

// warm runs the plan.
func (f *warmupFlags) warm(ctx context.Context, plan *warmup.Plan, c *crew, screen *warmupScreen) (warmup.Report, error) {
	o := warmup.RunOptions{
		Workers: c.workers, Concurrency: f.concurrency, Lease: f.lease, GiveUp: f.giveUp, Jitter: f.jitter,
		TokensPerSecond: f.tokensPerS, BytesPerSecond: float64(f.bytesPerS), MaxBytes: int64(f.budget),
		Progress: screen.progress, Failed: screen.broken,
	}
	if f.journal != "" {
		j, err := warmup.OpenJournal(f.journal, runOf(plan, c.info.Variant, c.info.Epoch), f.restart)
		if err != nil {
			return warmup.Report{}, usageError{err}
		}
		defer j.Close()
		o.Journal = j
	}
	screen.begin(plan.Stats, c.workers)
	defer screen.end()
	return plan.Run(ctx, o)
}

func runOf(plan *warmup.Plan, v block.Variant, e block.Epoch) warmup.Run {
	return warmup.Run{Plan: fmt.Sprintf("%016x", plan.Digest), Variant: v.String(), Epoch: uint64(e)}
}

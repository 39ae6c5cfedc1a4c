package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/bench"
)

func (f *benchFlags) newWarmup() *cobra.Command {
	o := bench.WarmupOptions{}
	cmd := f.command("warmup", "Measure what a warm-up costs those who are served, and what a second worker brings",
		`  redis-server --port 6399 --save '' & kvtier bench warmup --redis redis://127.0.0.1:6399
  kvtier bench warmup --rounds 20 --json | jq .warmup.serving.ratio`,
		func(ctx context.Context, stderr io.Writer, r *benchReport) error { return f.warmup(ctx, stderr, r, o) })
	cmd.Long = `warmup starts workers with the shipped model, as processes of their own, and measures two things.

Serving: requests come at random times, at the same times in two windows, in one of which the worker warms new prompts as fast as it can. Times
count from when a request was due. Windows of both kinds take turns; "noise" compares idle windows among themselves.

Scaling: the same cold manifest is warmed by one worker and by two, with one thread each, in turns with the bound: the same prompts computed by one
and by two, without looking up, sharing or storing anything.

The server has to be empty, and is flushed at the end. Without --redis it is a fake one in this process: good for a look, not for figures.`
	fl := cmd.Flags()
	fl.StringVar(&f.redis, "redis", "", "`URL` of an empty server: redis://[user:password@]host:port (default: a fake one in this process)")
	fl.IntVar(&o.Rounds, "rounds", 10, "pairs of windows, and runs of each kind")
	fl.DurationVar(&o.Window, "window", 4*time.Second, "length of a window")
	fl.Float64Var(&o.Rate, "rate", 10, "requests per second")
	fl.IntVar(&o.PromptTokens, "prompt-tokens", 96, "length of the requests' prompts")
	fl.IntVar(&o.AnswerTokens, "answer-tokens", 24, "length of their answers")
	fl.IntVar(&o.Prompts, "prompts", 96, "prompts of the manifest for one and two workers; each 12 share 256 tokens, and have 128 of their own")
	fl.Uint64Var(&o.Seed, "seed", 1, "of prompts and times")
	return cmd
}

func (f *benchFlags) warmup(ctx context.Context, stderr io.Writer, r *benchReport, o bench.WarmupOptions) (err error) {
	if o.Rounds < 1 || o.Window < 100*time.Millisecond || o.Rate <= 0 || o.Prompts < 1 || o.PromptTokens < 1 || o.AnswerTokens < 1 || o.PromptTokens+o.AnswerTokens > 2000 {
		return usagef("want at least one round, prompt, and request per second, windows of 100ms or more, and requests of 2 to 2000 tokens")
	}
	o.Server = f.redis
	if o.Server == "" {
		m, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer m.Close()
		o.Server = "redis://" + m.Addr()
	} else if r.Server, err = bench.OpenServer(ctx, o.Server); err != nil {
		return benchRefused(err)
	}
	o.Start = func(ctx context.Context, threads int) (string, func(), error) {
		return startWorkerProcess(ctx, o.Server, threads)
	}
	bar := newProgress(stderr, "warm-ups", o.Steps())
	defer bar.done()
	o.Step = bar.step
	result, err := bench.Warmup(ctx, o)
	r.Warmup = &result
	if errors.Is(err, bench.ErrNotEmpty) {
		return usageError{err}
	}
	return err
}

// startWorkerProcess runs this binary as a worker with the shipped model and waits until it is ready.
func startWorkerProcess(ctx context.Context, redisURL string, threads int) (url string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, self, "worker", "--listen", addr, "--redis", redisURL, "--ttl", "10m")
	cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", threads))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // what it wrote says more
	}()
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	url = "http://" + addr
	for start := time.Now(); ; {
		if askReady(ctx, url+"/readyz") == nil {
			return url, stop, nil
		}
		select {
		case <-ended:
			return "", nil, fmt.Errorf("the worker ended: %s", log.String())
		case <-ctx.Done():
			stop()
			return "", nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(start) > grantTimeout {
			stop() // it may still be writing its log
			return "", nil, fmt.Errorf("the worker was not ready within %v: %s", grantTimeout, log.String())
		}
	}
}

func (r *benchReport) showWarmup(w io.Writer) error {
	if r.Warmup == nil {
		return nil
	}
	s := r.Warmup.Serving
	t := newTable("serving", "requests", "TTFT p50, ms", "p99", "whole p50, ms", "p99")
	for _, x := range []struct {
		name string
		l    bench.Latency
	}{{"idle", s.Idle}, {"warming", s.Warming}} {
		t.row(x.name, humanize.Comma(int64(x.l.Requests)), fmt.Sprintf("%.2f", x.l.TTFTP50Ms), fmt.Sprintf("%.2f", x.l.TTFTP99Ms),
			fmt.Sprintf("%.2f", x.l.TotalP50Ms), fmt.Sprintf("%.2f", x.l.TotalP99Ms))
	}
	for _, x := range []struct {
		name string
		l    bench.LatencyRatio
	}{{"warming to idle", s.Ratio}, {"noise", s.Noise}} {
		t.row(x.name, "", fmt.Sprintf("%.3f", x.l.TTFTP50), fmt.Sprintf("%.3f", x.l.TTFTP99), fmt.Sprintf("%.3f", x.l.TotalP50), fmt.Sprintf("%.3f", x.l.TotalP99))
	}
	if err := t.print(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "%d windows of %.1f s of each kind, %g requests/s of %d + %d tokens, %d threads; beside them %s tokens/s were warmed, without them %s\n", s.Rounds,
		s.WindowS, s.Rate, s.PromptTokens, s.AnswerTokens, s.Threads, humanize.Comma(int64(s.WarmedPerS)), humanize.Comma(int64(s.AlonePerS)))
	c := r.Warmup.Scaling
	g := newTable("scaling", "one worker, tokens/s", "two", "ratio")
	rate := func(f bench.Range) string {
		return fmt.Sprintf("%s (%s–%s)", humanize.Comma(int64(f.Median)), humanize.Comma(int64(f.Min)), humanize.Comma(int64(f.Max)))
	}
	g.row("warm-up", rate(c.One), rate(c.Two), c.Ratio.String())
	g.row("bound: computing only", rate(c.BoundOne), rate(c.BoundTwo), c.BoundRatio.String())
	if err := g.print(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d rounds of %d prompts, %s tokens; %s of the bound\n", c.Rounds, c.Prompts, humanize.Comma(c.Tokens), c.OfBound.String())
	return err
}

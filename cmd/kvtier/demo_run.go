package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker"
)

const demoMaxTokens = 24

// demo is one run.
type demo struct {
	c      *demoCluster
	report *demoReport
	bar    *progress
	// epochs in which anything was computed, by variant: what to look for, and to remove at the end.
	epochs map[block.Variant]map[block.Epoch]bool
}

// demoSteps is the number of requests of a run, for the progress bar.
const demoSteps = 18 + 6 + 2 + 6 + 2

func runDemo(ctx context.Context, redisURL string, stderr io.Writer) (_ *demoReport, err error) {
	start := time.Now()
	c, err := startDemoCluster(ctx, redisURL)
	if err != nil {
		return nil, err
	}
	d := &demo{c: c, report: &demoReport{Redis: c.redis.name()}, epochs: map[block.Variant]map[block.Epoch]bool{},
		bar: newProgress(stderr, "demo", demoSteps)}
	defer func() {
		d.bar.done()
		// Also when the demo was interrupted: what it stored in somebody's Redis goes.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, d.cleanUp(clean), c.close(clean))
	}()
	for _, n := range c.nodes { // the first request of a process pays for page faults that have nothing to do with caches
		if _, err := n.replica.Complete(ctx, worker.Request{Prompt: sceneText, NoCache: true}); err != nil {
			return nil, err
		}
	}
	for _, phase := range []func(context.Context) error{d.reuse, d.swap, d.outage} {
		if err := phase(ctx); err != nil {
			return nil, err
		}
	}
	d.judge()
	d.report.took = time.Since(start)
	d.report.Seconds = d.report.took.Seconds()
	return d.report, nil
}

// request sends one request to worker i, without and with the cache, and records both.
func (d *demo) request(ctx context.Context, phase, name string, i int, req worker.Request) (demoRow, error) {
	req.MaxTokens = demoMaxTokens
	plain := req
	plain.NoCache = true
	n := d.c.nodes[i]
	want, err := n.replica.Complete(ctx, plain)
	if err != nil {
		return demoRow{}, err
	}
	got, err := n.replica.Complete(ctx, req)
	if err != nil {
		return demoRow{}, err
	}
	v := got.Identity.Variant()
	if d.epochs[v] == nil {
		d.epochs[v] = map[block.Epoch]bool{}
	}
	d.epochs[v][got.Epoch] = true
	row := demoRow{
		Phase: phase, Scenario: name, Worker: i + 1, Version: got.Label, Variant: v.String(),
		Prompt: got.PromptTokens, Hot: got.HotTokens, Remote: got.RemoteTokens, Computed: got.ComputedTokens,
		TTFT: ms(got.TTFT), NoCache: ms(want.TTFT), Miss: got.Miss.String(),
		// The same weights must have answered both, or the comparison would prove nothing.
		Identical: slices.Equal(got.Tokens, want.Tokens) && got.Identity == want.Identity,
		Degraded:  got.Miss.Degraded() || len(n.degraded()) > 0,
	}
	d.report.Requests = append(d.report.Requests, row)
	d.bar.step()
	return row, nil
}

// shared waits until what worker i computed is in Redis: the demo asks what other workers can use, not how fast it gets there.
func (d *demo) shared(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return d.c.nodes[i].cache.Flush(ctx)
}

func ms(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 }

// reuse sends requests with shared prefixes to the workers in turn.
func (d *demo) reuse(ctx context.Context) error {
	for _, s := range demoScenarios() {
		for k, suffix := range s.suffixes {
			req := worker.Request{Prompt: s.prefix + suffix, Temperature: s.temperature, Seed: uint64(k)}
			if _, err := d.request(ctx, "reuse", s.name, k%2, req); err != nil {
				return err
			}
			if err := d.shared(ctx, k%2); err != nil {
				return err
			}
		}
	}
	return nil
}

// swap activates the second checkpoint, then the first again.
func (d *demo) swap(ctx context.Context) error {
	old := d.resident()
	start := time.Now()
	if err := d.activate(ctx, shippedV2); err != nil {
		return err
	}
	d.report.Swap.Milliseconds = time.Since(start).Milliseconds()
	// The workers' first requests are prompts that were cached under the old weights: a hit could only be stale.
	first, err := d.ask(ctx, "swap", ask{0, 0}, ask{1, 1})
	if err != nil {
		return err
	}
	later, err := d.ask(ctx, "swap", ask{0, 1}, ask{1, 0}, ask{2, 0}, ask{2, 1})
	if err != nil {
		return err
	}
	d.report.Swap.FirstCached, d.report.Swap.LaterCached = first, later
	err = d.c.await(ctx, "old entries to be reclaimed", func() bool {
		n, err := d.c.keys(ctx, old, d.epochs[old])
		d.report.Swap.OldKeysLeft = n
		return n == 0 && err == nil
	})
	if err != nil && ctx.Err() != nil {
		return err // else: keys are left, and the report says so
	}

	if err := d.activate(ctx, shippedV1); err != nil {
		return err
	}
	d.report.Swap.BackFirstCached, err = d.ask(ctx, "back", ask{0, 0}, ask{1, 1})
	return err
}

// ask is a scenario's first prompt for a worker.
type ask struct{ scenario, worker int }

// ask sends prompts of the first phase once more and returns how many of their tokens came from the cache.
func (d *demo) ask(ctx context.Context, phase string, asks ...ask) (cached int, err error) {
	for _, a := range asks {
		s := demoScenarios()[a.scenario]
		row, err := d.request(ctx, phase, s.name, a.worker, worker.Request{Prompt: s.prefix + s.suffixes[0], Temperature: s.temperature})
		if err != nil {
			return cached, err
		}
		cached += row.Hot + row.Remote
		if err := d.shared(ctx, a.worker); err != nil {
			return cached, err
		}
	}
	return cached, nil
}

func (d *demo) resident() block.Variant {
	e, _ := d.c.nodes[0].replica.Resident()
	return e.Identity().Variant()
}

// activate asks the coordinator for a version and waits until both workers serve it under a lease.
func (d *demo) activate(ctx context.Context, label string) error {
	if _, err := d.c.client.Activate(ctx, d.c.model, label, false); err != nil {
		return err
	}
	return d.c.await(ctx, "workers to swap to "+label, func() bool {
		for _, n := range d.c.nodes {
			if _, now := n.replica.Resident(); now != label || len(n.degraded()) > 0 {
				return false
			}
		}
		return true
	})
}

// outage takes Redis away and brings it back.
func (d *demo) outage(ctx context.Context) error {
	o := &d.report.Outage
	o.Identical = true
	if err := d.c.redis.outage(); err != nil {
		return err
	}
	for k, s := range slices.Repeat(demoScenarios(), 2) {
		req := worker.Request{Prompt: s.prefix + s.suffixes[2+k/3], Temperature: s.temperature, Seed: uint64(k)}
		o.Requests++
		row, err := d.request(ctx, "outage", s.name, k%2, req)
		if err != nil {
			o.Failed++
			continue
		}
		o.Identical = o.Identical && row.Identical
		if row.Degraded {
			o.Degraded++
		}
	}
	if err := d.c.redis.restore(); err != nil {
		return err
	}
	start := time.Now()
	err := d.c.await(ctx, "workers to recover", func() bool {
		for _, n := range d.c.nodes {
			if _, err := n.replica.Complete(ctx, worker.Request{Prompt: sceneText[:200] + time.Now().String()}); err != nil || len(n.degraded()) > 0 {
				return false // traffic is what heals a breaker
			}
		}
		return true
	})
	if err != nil && ctx.Err() != nil {
		return err
	}
	o.Recovery = time.Since(start).Milliseconds()
	s := demoScenarios()[2]
	for i := range 2 {
		row, err := d.request(ctx, "recovery", s.name, i, worker.Request{Prompt: "[recovered]\n" + s.prefix + s.suffixes[i]})
		if err != nil {
			return err
		}
		o.HitsBack = row.Remote > 0
		if err := d.shared(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// cleanUp removes what the demo stored.
func (d *demo) cleanUp(ctx context.Context) error {
	var errs []error
	for v, epochs := range d.epochs {
		for e := range epochs {
			_, err := d.c.data.DeletePrefix(ctx, block.EpochPrefix(v, e))
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// judge draws the conclusions.
func (d *demo) judge() {
	r := d.report
	r.Broken = []string{}
	broken := func(format string, args ...any) { r.Broken = append(r.Broken, fmt.Sprintf(format, args...)) }
	r.Summary = summarize(r.Requests)
	r.Summary.StaleTokens = r.Swap.FirstCached + r.Swap.BackFirstCached
	if !r.Summary.Identical {
		broken("never wrong: an output with the cache differs from the one without")
	}
	if r.Summary.StaleTokens > 0 {
		broken("never stale: %d tokens of earlier weights or epochs were used", r.Summary.StaleTokens)
	}
	if r.Swap.OldKeysLeft > 0 {
		broken("never stale: %d entries of revoked weights are still in Redis", r.Swap.OldKeysLeft)
	}
	if r.Swap.LaterCached == 0 {
		broken("never slower: no hits after the swap")
	}
	for _, s := range demoScenarios() {
		if !slices.ContainsFunc(r.Requests, func(x demoRow) bool {
			return x.Phase == "reuse" && x.Scenario == s.name && x.Worker == 2 && x.Remote > 0
		}) {
			broken("never slower: no remote hit in %s on the worker that did not compute the prefix", s.name)
		}
	}
	if r.Outage.Failed > 0 || !r.Outage.Identical {
		broken("never blocks: without Redis %d requests failed", r.Outage.Failed)
	}
	if r.Outage.Degraded == 0 {
		broken("never blocks: the outage was not noticed")
	}
	if !r.Outage.HitsBack {
		broken("never blocks: no remote hits after Redis came back")
	}
}

func summarize(rows []demoRow) demoSummary {
	s := demoSummary{Identical: true}
	prompt, computed := 0, 0
	type group struct{ ttft, ratio []float64 }
	var cold, hot, remote group
	for _, x := range rows {
		s.Identical = s.Identical && x.Identical
		if x.Phase != "reuse" {
			continue
		}
		prompt += x.Prompt
		computed += x.Computed
		g := &cold
		switch {
		case x.Remote > 0:
			g = &remote
		case x.Hot > 0:
			g = &hot
		}
		g.ttft = append(g.ttft, x.TTFT)
		g.ratio = append(g.ratio, x.TTFT/x.NoCache)
	}
	s.ReusedRatio = 1 - float64(computed)/float64(max(prompt, 1))
	s.TTFTCold, s.RatioCold = median(cold.ttft), median(cold.ratio)
	s.TTFTHot, s.RatioHot = median(hot.ttft), median(hot.ratio)
	s.TTFTRemote, s.RatioRemote = median(remote.ttft), median(remote.ratio)
	return s
}

func median(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}

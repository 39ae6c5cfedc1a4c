package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/warmup"
	"github.com/kvtier/kvtier/worker"
)

// warmupEstimate is what --dry-run --json prints; field names are stable.
type warmupEstimate struct {
	warmup.Stats
	SharedShare  float64 `json:"shared_share"`
	UniqueTokens int64   `json:"unique_tokens"`
	// PresentBlocks, with --look-up, are those of the unique ones that are stored; bytes, seconds and memory are of the others.
	PresentBlocks *int64 `json:"present_blocks,omitempty"`

	BytesRaw     int64   `json:"bytes_raw"`     // as they are stored now
	BytesEncoded int64   `json:"bytes_encoded"` // if workers encoded
	TokensPerS   float64 `json:"tokens_per_s"`  // measured on one worker, with nothing else to do; 0 if that was not possible
	Seconds      float64 `json:"seconds"`       // for all workers together; without --look-up, if nothing of it is stored yet
	Workers      int     `json:"workers"`
	PlanSeconds  float64 `json:"plan_s"`

	Memory *memoryEstimate `json:"memory,omitempty"` // with --redis
}

// memoryEstimate is what the plan does to the servers.
type memoryEstimate struct {
	UsedBytes int64    `json:"used_bytes"`
	MaxBytes  int64    `json:"max_bytes"` // 0 for no bound
	Policy    []string `json:"policy"`
	// EvictedBytes is what would have to leave for the plan; under noeviction it is what would be refused.
	EvictedBytes int64 `json:"evicted_bytes"`
}

// sampleTokens is how much is computed to learn the rate.
const sampleTokens = 512

// estimate prints what the plan would cost.
func (f *warmupFlags) estimate(ctx context.Context, plan *warmup.Plan, c *crew, w io.Writer) error {
	e := warmupEstimate{Stats: plan.Stats, SharedShare: plan.Stats.SharedShare(), Workers: len(c.workers), PlanSeconds: plan.Seconds,
		UniqueTokens: plan.Stats.UniqueBlocks * int64(c.info.BlockTokens)}
	missing := plan.Stats.UniqueBlocks
	if f.lookUp {
		present, err := c.present(ctx, plan)
		if err != nil {
			return err
		}
		e.PresentBlocks = &present
		missing -= present
	}
	missingTokens := float64(missing * int64(c.info.BlockTokens))
	raw, encoded := float64(c.info.BlockBytes), float64(c.info.BlockBytes) // of a block
	if plan.Stats.UniqueBlocks > 0 {
		if m, err := c.measure(ctx, plan); err != nil {
			fmt.Fprintf(w, "not measured: %v\n", err)
		} else if m.ComputedTokens > 0 {
			blocks := float64(m.ComputedTokens / c.info.BlockTokens)
			raw, encoded = float64(m.StoredBytes)/blocks, float64(m.EncodedBytes)/blocks
			e.TokensPerS = float64(m.ComputedTokens) / (m.Milliseconds / 1000)
			e.Seconds = missingTokens / e.TokensPerS / float64(len(c.workers))
			if f.tokensPerS > 0 {
				e.Seconds = max(e.Seconds, missingTokens/f.tokensPerS)
			}
		}
	}
	e.BytesRaw, e.BytesEncoded = int64(raw*float64(missing)), int64(encoded*float64(missing))
	if f.redis != "" {
		m, err := f.memory(ctx, e.BytesRaw+missing*int64(c.info.BlockParts)*keyOverhead)
		if err != nil {
			return err
		}
		e.Memory = &m
	}
	if f.asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	return e.print(w)
}

// keyOverhead is about what a server needs for a key beside its value.
const keyOverhead = 200

// measure has one worker compute a sample. Nothing is kept.
func (c *crew) measure(ctx context.Context, plan *warmup.Plan) (worker.WarmAnswer, error) {
	tokens, err := plan.Sample(ctx, sampleTokens)
	if err != nil {
		return worker.WarmAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if c.own != nil {
		res, err := c.own.node.replica.Warm(ctx, worker.WarmRequest{Tokens: tokens, Measure: true})
		return res.Answer(), err
	}
	for _, r := range c.remotes {
		var a worker.WarmAnswer
		if a, err = r.Measure(ctx, tokens); err == nil {
			return a, nil
		}
	}
	return worker.WarmAnswer{}, err
}

// present looks up what is stored of the plan.
func (c *crew) present(ctx context.Context, plan *warmup.Plan) (int64, error) {
	var lookers []warmup.Looker
	for _, w := range c.workers {
		if l, ok := w.(warmup.Looker); ok && w.Ping(ctx) == nil {
			lookers = append(lookers, l)
		}
	}
	if len(lookers) == 0 {
		return 0, warmup.ErrNoWorkers
	}
	return plan.Present(ctx, lookers)
}

// memory says what more bytes do to the servers: they are taken to spread evenly.
func (f *warmupFlags) memory(ctx context.Context, more int64) (m memoryEstimate, err error) {
	s, err := redisstore.Open(redisstore.Options{URL: f.redis, Role: "warmup", PoolSize: 1})
	if err != nil {
		return m, usageError{err}
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	servers, err := s.Memory(ctx)
	if err != nil {
		return m, err
	}
	for _, x := range servers {
		m.UsedBytes, m.MaxBytes = m.UsedBytes+x.UsedBytes, m.MaxBytes+x.MaxBytes
		if !strings.Contains(strings.Join(m.Policy, " "), x.Policy) {
			m.Policy = append(m.Policy, x.Policy)
		}
		if x.MaxBytes > 0 {
			m.EvictedBytes += max(0, x.UsedBytes+more/int64(len(servers))-x.MaxBytes)
		}
	}
	return m, nil
}

func (e warmupEstimate) print(w io.Writer) error {
	t := newTable("dry run", "")
	t.row("prompts", humanize.Comma(e.Prompts))
	if e.Broken > 0 {
		t.row("broken lines", humanize.Comma(e.Broken))
	}
	if e.TooShort > 0 {
		t.row("shorter than a block", humanize.Comma(e.TooShort))
	}
	t.row("tokens", humanize.Comma(e.Tokens))
	t.row("blocks", humanize.Comma(e.Blocks))
	t.row("unique blocks", humanize.Comma(e.UniqueBlocks))
	t.row("shared", fmt.Sprintf("%.1f %%", 100*e.SharedShare))
	when := "nothing is there"
	if e.PresentBlocks != nil {
		when = "what is missing is computed"
		t.row("stored already", fmt.Sprintf("%s blocks", humanize.Comma(*e.PresentBlocks)))
	}
	t.row("bytes, raw", humanize.IBytes(uint64(e.BytesRaw)))
	t.row("bytes, encoded", humanize.IBytes(uint64(e.BytesEncoded)))
	if e.TokensPerS > 0 {
		t.row("measured rate", fmt.Sprintf("%s tokens/s on one of %d workers", humanize.Comma(int64(e.TokensPerS)), e.Workers))
		t.row("time, if "+when, time.Duration(e.Seconds*float64(time.Second)).Round(100*time.Millisecond).String())
	}
	if m := e.Memory; m != nil {
		bound := "no bound"
		if m.MaxBytes > 0 {
			bound = humanize.IBytes(uint64(m.MaxBytes))
		}
		t.row("redis, used of", humanize.IBytes(uint64(m.UsedBytes))+" of "+bound+" ("+strings.Join(m.Policy, ", ")+")")
		what := "would be evicted"
		if strings.Contains(strings.Join(m.Policy, " "), "noeviction") {
			what = "would be refused"
		}
		t.row(what, humanize.IBytes(uint64(m.EvictedBytes)))
	}
	t.row("planned in", fmt.Sprintf("%.1f s", e.PlanSeconds))
	return t.print(w)
}

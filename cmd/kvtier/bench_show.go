package main

import (
	"fmt"
	"io"

	"github.com/dustin/go-humanize"

	"github.com/kvtier/kvtier/internal/bench"
)

func (r *benchReport) show(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	for _, part := range []func(io.Writer) error{r.showHash, r.showHot, r.showCodec, r.showRemote, r.showAdvise, r.showWarmup} {
		if err := part(w); err != nil {
			return err
		}
	}
	m := r.Machine
	fmt.Fprintf(w, "machine: %s, %d CPUs, %d used by this process, %s, %s, load %s\n", m.CPU, m.CPUs, m.Threads, m.OS, m.Go, m.Load)
	return nil
}

func (r *benchReport) showHash(w io.Writer) error {
	if r.Hash == nil {
		return nil
	}
	h := r.Hash
	t := newTable("hash", "M tokens/s on one core", "ns per block", "allocations per block")
	t.row(fmt.Sprintf("prompt of %s tokens in blocks of %d", humanize.Comma(int64(h.PromptTokens)), h.BlockTokens),
		spread(h.TokensPerSecond/1e6, h.TokensPerSecondMin/1e6, h.TokensPerSecondMax/1e6), fmt.Sprintf("%.0f", h.NsPerBlock),
		fmt.Sprintf("%.2f", h.AllocsPerBlock))
	return t.print(w)
}

func (r *benchReport) showHot(w io.Writer) error {
	if r.Hot == nil {
		return nil
	}
	t := newTable("hot hit", "blocks in the lookup", "goroutines", "ns per hit", "allocations per hit", "bytes allocated")
	for _, x := range r.Hot.Rows {
		t.row(humanize.IBytes(uint64(x.BlockBytes)), fmt.Sprint(x.WalkBlocks), fmt.Sprint(x.Goroutines),
			fmt.Sprintf("%.0f (%.0f–%.0f)", x.NsPerHit, x.NsPerHitMin, x.NsPerHitMax), fmt.Sprintf("%.2f", x.AllocsPerHit), fmt.Sprintf("%.0f", x.BytesPerHit))
	}
	if err := t.print(w); err != nil {
		return err
	}
	if r.Hot.ZeroCopy {
		fmt.Fprintln(w, "no byte of the payload is copied: every hit of a block sees the same memory")
	} else {
		fmt.Fprintln(w, "payload was COPIED: hits of a block saw different memory")
	}
	return nil
}

func (r *benchReport) showCodec(w io.Writer) error {
	if len(r.Codec) == 0 {
		return nil
	}
	t := newTable("codec", "times smaller", "encode GB/s", "× memcpy", "decode GB/s", "× memcpy", "lossless", "allocations")
	for _, x := range r.Codec {
		t.row(x.Name, fmt.Sprintf("%.3f", x.Ratio), fmt.Sprintf("%.2f", x.EncodeGBps), fmt.Sprintf("%.2f", x.EncodeToMemcpy),
			fmt.Sprintf("%.2f", x.DecodeGBps), fmt.Sprintf("%.2f", x.DecodeToMemcpy), yesNo(x.Lossless), fmt.Sprintf("%.1f", x.AllocsPerOp))
	}
	if err := t.print(w); err != nil {
		return err
	}
	for _, x := range r.Codec {
		if l := x.Loss; l != nil {
			fmt.Fprintf(w, "%s loses: perplexity of %s %.3f instead of %.3f; logits off by %.4f (RMS; at most %.3f) where they spread by %.2f; likeliest token the same at %.1f %% of %d positions\n",
				x.Name, l.Model, l.Perplexity, l.PerplexityExact, l.LogitRMS, l.LogitMax, l.LogitSpread, 100*l.SameTop, l.Scored)
		}
	}
	return nil
}

func (r *benchReport) showRemote(w io.Writer) error {
	if len(r.Remote) == 0 {
		return nil
	}
	fmt.Fprintf(w, "server: %s %s, %s, maxmemory-policy %s\n", r.Server.Product, r.Server.Version, orUnknown(r.Server.Allocator), orUnknown(r.Server.Policy))
	t := newTable("remote", "value", "connections", "GB/s", "raw GB/s", "of raw", "allocations", "client CPU s/GB", "raw")
	for _, x := range r.Remote {
		value := humanize.IBytes(uint64(x.ValueBytes))
		if x.Parts > 1 {
			value += fmt.Sprintf(" in %d parts", x.Parts)
		}
		t.row(remoteName(x.Op), value, fmt.Sprint(x.Connections), spread(x.GBps, x.GBpsMin, x.GBpsMax), spread(x.RawGBps, x.RawGBpsMin, x.RawGBpsMax),
			spread(x.Ratio, x.RatioMin, x.RatioMax), fmt.Sprintf("%.1f, %s", x.AllocsPerOp, humanize.IBytes(uint64(x.AllocBytes))),
			fmt.Sprintf("%.3f", x.CPUSecondsGB), fmt.Sprintf("%.3f", x.RawCPUSecondGB))
	}
	if err := t.print(w); err != nil {
		return err
	}
	p := r.Probe
	fmt.Fprintf(w, "probe of %s blocks: %.2f ms in one round trip; a bare pipeline of EXISTS takes %.2f ms\n", humanize.Comma(int64(p.Blocks)), p.Ms, p.RawMs)
	return nil
}

func remoteName(op string) string {
	switch op {
	case "get_verified":
		return "get, header and checksum verified"
	case "put":
		return "put, sealed with header and checksum"
	case "put_sealed":
		return "put of what was sealed before"
	}
	return op
}

func (r *benchReport) showAdvise(w io.Writer) error {
	if len(r.Advise) == 0 {
		return nil
	}
	t := newTable("model", "bytes per token", "in Redis", "GB/s", "pays below, tokens/s of prefill", "numbers from")
	for _, a := range r.Advise {
		inRedis := fmt.Sprintf("%s (%.2f×)", humanize.Comma(int64(a.RedisBytes)), a.RedisBytes/float64(a.TokenBytes))
		t.row(a.Model, humanize.Comma(int64(a.TokenBytes)), inRedis, fmt.Sprintf("%.2f", a.GBps), humanize.Comma(int64(a.BreakEven)), a.Source)
	}
	if err := t.print(w); err != nil {
		return err
	}
	if len(r.Advise) > 1 {
		fmt.Fprintln(w, "one model, next to GPUs: kvtier bench advise --model NAME")
		return nil
	}
	a := r.Advise[0]
	fmt.Fprintln(w, a.Sentence())
	if len(a.GPUs) == 0 {
		return nil
	}
	g := newTable("on paper", "context", "prefill, tokens/s", "needs GB/s", "fetch is", "pays")
	for _, x := range a.GPUs {
		g.row(x.Name, humanize.Comma(int64(x.ContextTokens)), fmt.Sprintf("%s–%s", humanize.Comma(int64(x.PrefillLow)), humanize.Comma(int64(x.PrefillHigh))),
			fmt.Sprintf("%.2f–%.2f", x.NeedLow, x.NeedHigh), fmt.Sprintf("%.1f× as fast", x.Speedup), x.Pays)
	}
	if err := g.print(w); err != nil {
		return err
	}
	fmt.Fprintln(w, "GPU rows are estimates: 40 to 50 % of the dense bf16 peak, 2 FLOPs per parameter and token plus causal attention; measure your engine's prefill instead.")
	return nil
}

func spread(median, low, high float64) string {
	return bench.Range{Median: median, Min: low, Max: high}.String()
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

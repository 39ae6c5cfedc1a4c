package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/kvtier/kvtier/internal/bench"
)

// render prints a document of kvtier bench --json as Markdown.
func render(w io.Writer, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var d struct {
		Machine bench.Machine
		Server  *bench.Server
		Remote  []bench.RemoteRow
		Probe   bench.ProbeResult
		Hot     bench.HotResult
		Codec   []bench.CodecResult
		Hash    *bench.HashResult
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	m := d.Machine
	fmt.Fprintf(w, "Machine: %s, %d CPUs, of which this process used %d; %s, %s; load %s at the start.\n", m.CPU, m.CPUs, m.Threads, m.OS, m.Go, m.Load)
	if d.Server != nil {
		fmt.Fprintf(w, "Server: %s %s (%s).\n", d.Server.Product, d.Server.Version, d.Server.Allocator)
	}
	if len(d.Remote) > 0 {
		fmt.Fprint(w, "\n| op | value | connections | GB/s | raw GB/s | of raw | allocations, bytes | client CPU s/GB | raw |\n|---|---|---|---|---|---|---|---|---|\n")
		for _, x := range d.Remote {
			value := fmt.Sprintf("%d KiB", x.ValueBytes>>10)
			if x.Parts > 1 {
				value += fmt.Sprintf(" in %d parts", x.Parts)
			}
			fmt.Fprintf(w, "| %s | %s | %d | %v | %v | %v | %.1f, %s | %.3f | %.3f |\n", x.Op, value, x.Connections, bench.Range{Median: x.GBps, Min: x.GBpsMin, Max: x.GBpsMax},
				bench.Range{Median: x.RawGBps, Min: x.RawGBpsMin, Max: x.RawGBpsMax}, bench.Range{Median: x.Ratio, Min: x.RatioMin, Max: x.RatioMax},
				x.AllocsPerOp, short(x.AllocBytes), x.CPUSecondsGB, x.RawCPUSecondGB)
		}
		fmt.Fprintf(w, "\nProbe of %d blocks: %.2f ms; a bare pipeline of EXISTS: %.2f ms (%.2f×).\n", d.Probe.Blocks, d.Probe.Ms, d.Probe.RawMs, d.Probe.Ratio)
	}
	if d.Hash != nil {
		fmt.Fprintf(w, "\nHash: %.1f M tokens/s on one core (%.1f–%.1f), %.0f ns and %.2f allocations per block of %d tokens.\n", d.Hash.TokensPerSecond/1e6,
			d.Hash.TokensPerSecondMin/1e6, d.Hash.TokensPerSecondMax/1e6, d.Hash.NsPerBlock, d.Hash.AllocsPerBlock, d.Hash.BlockTokens)
	}
	if len(d.Codec) > 0 {
		fmt.Fprint(w, "\n| codec | times smaller | encode GB/s | × memcpy | decode GB/s | × memcpy | lossless |\n|---|---|---|---|---|---|---|\n")
		for _, x := range d.Codec {
			fmt.Fprintf(w, "| %s | %.3f | %.2f | %.2f | %.2f | %.2f | %t |\n", x.Name, x.Ratio, x.EncodeGBps, x.EncodeToMemcpy, x.DecodeGBps, x.DecodeToMemcpy, x.Lossless)
		}
		for _, x := range d.Codec {
			if l := x.Loss; l != nil {
				fmt.Fprintf(w, "\n%s loses: perplexity of %s %.3f instead of %.3f on %d tokens behind prefixes of %d; logits off by %.4f (RMS; at most %.3f) where they spread by %.2f; "+
					"the likeliest token is the same at %.1f %% of positions.\n", x.Name, l.Model, l.Perplexity, l.PerplexityExact, l.Scored, l.Prefix, l.LogitRMS, l.LogitMax, l.LogitSpread, 100*l.SameTop)
			}
		}
	}
	if len(d.Hot.Rows) > 0 {
		fmt.Fprint(w, "\n| hot hit | blocks in the lookup | goroutines | ns per hit | allocations, bytes |\n|---|---|---|---|---|\n")
		for _, x := range d.Hot.Rows {
			fmt.Fprintf(w, "| %d KiB | %d | %d | %.0f (%.0f–%.0f) | %.2f, %.0f B |\n", x.BlockBytes>>10, x.WalkBlocks, x.Goroutines, x.NsPerHit, x.NsPerHitMin, x.NsPerHitMax,
				x.AllocsPerHit, x.BytesPerHit)
		}
	}
	return nil
}

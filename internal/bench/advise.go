package bench

import (
	"fmt"

	"github.com/dustin/go-humanize"

	"github.com/kvtier/kvtier/block"
)

// Advice says for which prefill speeds a tier pays. JSON names are stable.
type Advice struct {
	Model      string `json:"model"`
	Source     string `json:"source"`
	TokenBytes int    `json:"bytes_per_token"`
	// RedisBytes is what Redis needs for a token, with allocators that have size classes, in blocks of AdviceBlockTokens tokens, names included.
	RedisBytes float64 `json:"redis_bytes_per_token"`
	GBps       float64 `json:"gbps"`     // at which the tier delivers
	Measured   bool    `json:"measured"` // by this run, as opposed to given
	// BreakEven is the prefill speed, in tokens/s of one worker, above which computing a prefix is faster than fetching it.
	BreakEven float64 `json:"break_even_tokens_per_s"`
	GPUs      []GPU   `json:"gpus"`
}

// GPU compares with an accelerator on paper. It is an estimate and never a measurement.
type GPU struct {
	Name          string  `json:"name"`
	PeakTFLOPS    float64 `json:"peak_tflops"` // dense bf16, from the data sheet
	ContextTokens int     `json:"context_tokens"`
	// PrefillLow and PrefillHigh are peak × 40 % and × 50 % of model FLOPs utilisation, divided by Model.FLOPs.
	PrefillLow  float64 `json:"prefill_tokens_per_s_low"`
	PrefillHigh float64 `json:"prefill_tokens_per_s_high"`
	// NeedLow and NeedHigh are the GB/s at which fetching is as fast as these.
	NeedLow  float64 `json:"needed_gbps_low"`
	NeedHigh float64 `json:"needed_gbps_high"`
	// Speedup is how many times faster a prefix is fetched than computed, at PrefillHigh.
	Speedup float64 `json:"speedup"`
	Pays    string  `json:"pays"` // yes, no, or depends: between low and high
}

// AdviceBlockTokens is the size of blocks that Advice is for: the engines' default.
const AdviceBlockTokens = 16

// keyBytes is what Redis needs for a name, its object, its place in the table and its time of expiry, some 200 bytes.
const keyBytes = 200

// RedisBytes is what Redis needs for the K/V of one token: 1.00 to 1.04 times TokenBytes in blocks of 256 KiB and more, up to 1.25 times in
// smaller ones (docs/decisions/020-size-classes.md). 0 for a model of which there is no layout.
func (m Model) RedisBytes() float64 {
	l := block.Layout{DType: m.DType, Order: block.OrderLKTHD, Layers: m.Layers, KVHeads: m.KVHeads, HeadDim: m.HeadDim, BlockTokens: AdviceBlockTokens,
		TPSize: 1, Numerics: "kvtier-bench/1"}
	if l.Validate() != nil {
		return 0
	}
	return float64(l.Charged()+keyBytes*l.PartCount()) / AdviceBlockTokens
}

// Advise divides: gbps by the bytes of a token, and what a GPU computes in a second by what a token costs.
func Advise(m Model, gbps float64, measured bool) Advice {
	a := Advice{Model: m.Name, Source: m.Source, TokenBytes: m.TokenBytes(), RedisBytes: m.RedisBytes(), GBps: gbps, Measured: measured,
		BreakEven: gbps * 1e9 / float64(m.TokenBytes()), GPUs: []GPU{}}
	if m.Params == 0 || m.Heads == 0 {
		return a
	}
	for _, g := range []GPU{{Name: "A10", PeakTFLOPS: 125}, {Name: "A100", PeakTFLOPS: 312}, {Name: "H100", PeakTFLOPS: 989}} {
		for _, ctx := range []int{1024, 8192, 32768} {
			g.ContextTokens = ctx
			perSecond := g.PeakTFLOPS * 1e12 / m.FLOPs(ctx)
			g.PrefillLow, g.PrefillHigh = 0.4*perSecond, 0.5*perSecond
			g.NeedLow, g.NeedHigh = g.PrefillLow*float64(a.TokenBytes)/1e9, g.PrefillHigh*float64(a.TokenBytes)/1e9
			g.Speedup = gbps / g.NeedHigh
			switch {
			case gbps >= g.NeedHigh:
				g.Pays = "yes"
			case gbps < g.NeedLow:
				g.Pays = "no"
			default:
				g.Pays = "depends"
			}
			a.GPUs = append(a.GPUs, g)
		}
	}
	return a
}

// Sentence says it in plain words.
func (a Advice) Sentence() string {
	how := "At the given"
	if a.Measured {
		how = "At the measured"
	}
	return fmt.Sprintf("%s %.2f GB/s a worker fetches %s tokens/s of %s (%s bytes each): the tier pays as long as its prefill is slower than that.",
		how, a.GBps, humanize.Comma(int64(a.BreakEven)), a.Model, humanize.Comma(int64(a.TokenBytes)))
}

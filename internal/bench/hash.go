package bench

import (
	"context"
	"time"

	"github.com/kvtier/kvtier/block"
)

// HashResult is how fast the names of a prompt's blocks are computed. JSON names are stable.
type HashResult struct {
	TokensPerSecond    float64 `json:"tokens_per_s"`
	TokensPerSecondMin float64 `json:"tokens_per_s_min"`
	TokensPerSecondMax float64 `json:"tokens_per_s_max"`
	NsPerBlock         float64 `json:"ns_per_block"`
	AllocsPerBlock     float64 `json:"allocs_per_block"`
	BlockTokens        int     `json:"block_tokens"`
	PromptTokens       int     `json:"prompt_tokens"`
}

// hashPrompt is the prompt whose chain is computed: 2,048 blocks of 16 tokens.
const hashPrompt, hashBlockTokens = 32768, 16

// Hash measures the chain hash (HMAC-SHA-256) of a 32,768-token prompt on one goroutine.
func Hash(ctx context.Context, d time.Duration, step func()) (HashResult, error) {
	tokens := make([]int32, hashPrompt)
	for i := range tokens {
		tokens[i] = int32(i*2654435761>>7) & 0x1ffff
	}
	id := block.Identity{Weights: block.Digest{1}, Layout: block.Digest{2}}
	c := block.NewChain([]byte("a secret of the benchmark, 32 by"), id, "", hashBlockTokens)
	hashes := make([]block.Hash, 0, hashPrompt/hashBlockTokens)
	series, err := Rounds(ctx, PlanFor(d, 1), []Method{{"hash", func(context.Context) (Work, error) {
		hashes = c.AppendHashes(hashes[:0], tokens)
		return Work{Ops: int64(len(hashes)), Bytes: 4 * hashPrompt}, nil
	}}}, step)
	if err != nil {
		return HashResult{}, err
	}
	rate := series[0].Of(func(s Sample) float64 { return float64(s.Ops) * hashBlockTokens / s.Seconds })
	return HashResult{
		TokensPerSecond: rate.Median, TokensPerSecondMin: rate.Min, TokensPerSecondMax: rate.Max,
		NsPerBlock:     series[0].Of(Sample.NsPerOp).Median,
		AllocsPerBlock: series[0].Of(Sample.AllocsPerOp).Median,
		BlockTokens:    hashBlockTokens, PromptTokens: hashPrompt,
	}, nil
}

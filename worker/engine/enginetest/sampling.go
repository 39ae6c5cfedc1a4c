package enginetest

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvtier/kvtier/worker/engine"
)

// Sampling makes an engine that gives out logits one whose sequences are [engine.Generator]s: what they should do, in the fewest words.
func Sampling(e engine.Engine) engine.Engine { return sampling{e} }

type sampling struct{ engine.Engine }

func (e sampling) NewSequence() (engine.Sequence, error) {
	s, err := e.Engine.NewSequence()
	if err != nil {
		return nil, err
	}
	return generator{s, e.Engine}, nil
}

type generator struct {
	engine.Sequence
	engine engine.Engine
}

// Generate implements [engine.Generator].
func (g generator) Generate(ctx context.Context, tokens []int32, opts engine.GenerateOptions, emit func(engine.Generated) bool) error {
	if free := g.engine.ContextTokens() - g.Len() - len(tokens); opts.MaxTokens > max(0, free) {
		return fmt.Errorf("enginetest: %d tokens more: %w", opts.MaxTokens, engine.ErrContextFull)
	}
	sampler := engine.NewSampler(opts.SampleOptions)
	for n := 0; ; n++ {
		logits, err := g.Prefill(ctx, tokens)
		if err != nil || n >= opts.MaxTokens {
			return err
		}
		out := engine.Generated{Token: sampler.Sample(logits)}
		if out.Token == g.engine.Tokenizer().EOS() {
			return nil
		}
		if opts.TopLogprobs > 0 {
			out.Logprob, out.Top = logprobs(logits, out.Token, opts.TopLogprobs)
		}
		if !emit(out) || n+1 == opts.MaxTokens {
			return nil
		}
		tokens = []int32{out.Token}
	}
}

func logprobs(logits []float32, token int32, n int) (float32, []engine.TokenLogprob) {
	sum := 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v))
	}
	all := make([]engine.TokenLogprob, len(logits))
	for i, v := range logits {
		all[i] = engine.TokenLogprob{Token: int32(i), Logprob: v - float32(math.Log(sum))}
	}
	of := all[token].Logprob
	slices.SortStableFunc(all, func(a, b engine.TokenLogprob) int { return cmp.Compare(b.Logprob, a.Logprob) })
	return of, all[:n]
}

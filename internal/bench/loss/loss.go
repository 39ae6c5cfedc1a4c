// Package loss measures what a lossy codec costs a model: a prefix of real text is computed exactly, passes through the codec into another
// sequence, and each token that follows is scored there and on the exact prefix.
package loss

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/bench"
	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/quant"
)

// sonnets are six of Shakespeare's (public domain). The shipped model was trained on plays only: it has not seen them.
//
//go:embed sonnets.txt
var sonnets string

const (
	modelName    = "shakespeare-3m-v2"
	prefixTokens = 256
	scoredTokens = 64 // after each prefix

	// Windows is how many prefixes kvtier bench measures.
	Windows = 5
)

// Measure measures quantisation q on the shipped model, with that many prefixes spread over the text, and calls step after each. The result
// is the same every time.
func Measure(ctx context.Context, q block.Quant, windows int, step func()) (_ *bench.Loss, err error) {
	b, err := fs.ReadFile(models.FS, modelName+".gguf")
	if err != nil {
		return nil, fmt.Errorf("loss: shipped model: %w", err)
	}
	exact, err := llama.OpenReader(bytes.NewReader(b), int64(len(b)), modelName, llama.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, exact.Close()) }()
	lossy, err := quant.Wrap(exact, q)
	if err != nil {
		return nil, err
	}
	text := exact.Tokenizer().Encode(sonnets)
	const window = prefixTokens + scoredTokens + 1
	if len(text) < window {
		return nil, fmt.Errorf("loss: the text has %d tokens, want %d", len(text), window)
	}
	s := sums{}
	for w := range windows {
		if err := s.window(ctx, lossy, exact, text[w*(len(text)-window)/max(1, windows-1):][:window]); err != nil {
			return nil, err
		}
		step()
	}
	return s.loss(), nil
}

// sums adds up over scored tokens.
type sums struct {
	scored, same, logits int
	nllExact, nll        float64
	square, most         float64
	sum, sumSquare       float64
}

// window scores what follows the prefix of tokens, on the exact prefix and on what lossy makes of it.
func (s *sums) window(ctx context.Context, lossy, exact engine.Engine, tokens []int32) error {
	src, err := lossy.NewSequence()
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := lossy.NewSequence()
	if err != nil {
		return err
	}
	defer dst.Close()
	whole, err := exact.NewSequence()
	if err != nil {
		return err
	}
	defer whole.Close()
	if _, err := src.Prefill(ctx, tokens[:prefixTokens]); err != nil {
		return err
	}
	if err := transfer(dst, src, lossy.Layout()); err != nil {
		return err
	}
	if _, err := whole.Prefill(ctx, tokens[:prefixTokens]); err != nil {
		return err
	}
	for at := prefixTokens; at < len(tokens)-1; at++ {
		got, err := dst.Prefill(ctx, tokens[at:at+1])
		if err != nil {
			return err
		}
		want, err := whole.Prefill(ctx, tokens[at:at+1])
		if err != nil {
			return err
		}
		s.add(got, want, tokens[at+1])
	}
	return nil
}

// transfer moves the K/V of all full blocks of src to dst, as the cache would.
func transfer(dst, src engine.Sequence, l block.Layout) error {
	for pos := 0; pos+l.BlockTokens <= src.Len(); pos += l.BlockTokens {
		for i := range l.PartCount() {
			p := l.Part(i)
			kv := make([]byte, l.PartBytes(p))
			if err := errors.Join(src.Export(pos, p, kv), dst.Import(pos, p, kv)); err != nil {
				return err
			}
		}
		if err := dst.Skip(l.BlockTokens); err != nil {
			return err
		}
	}
	return nil
}

func (s *sums) add(got, want []float32, next int32) {
	s.scored++
	s.nll += crossEntropy(got, next)
	s.nllExact += crossEntropy(want, next)
	if top(got) == top(want) {
		s.same++
	}
	for i, w := range want {
		d := float64(got[i]) - float64(w)
		s.square += d * d
		s.most = max(s.most, math.Abs(d))
		s.sum += float64(w)
		s.sumSquare += float64(w) * float64(w)
	}
	s.logits += len(want)
}

func (s *sums) loss() *bench.Loss {
	n, scored := float64(s.logits), float64(s.scored)
	mean := s.sum / n
	return &bench.Loss{
		Model: modelName, Prefix: prefixTokens, Scored: s.scored,
		PerplexityExact: math.Exp(s.nllExact / scored), Perplexity: math.Exp(s.nll / scored),
		LogitRMS: math.Sqrt(s.square / n), LogitMax: s.most, LogitSpread: math.Sqrt(s.sumSquare/n - mean*mean),
		SameTop: float64(s.same) / scored,
	}
}

// crossEntropy is -ln of the probability that logits give to token.
func crossEntropy(logits []float32, token int32) float64 {
	most := float64(logits[top(logits)])
	sum := 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x) - most)
	}
	return math.Log(sum) + most - float64(logits[token])
}

func top(logits []float32) int {
	best := 0
	for i, x := range logits {
		if x > logits[best] {
			best = i
		}
	}
	return best
}

package llama

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

// More sequences than pass through the layers together, at lengths on both sides of a span's end, on 1 to 3 threads: each has the
// logits and the K/V that it has alone.
func TestStepOfManySequences(t *testing.T) {
	const sequences, steps = batchTokens + 20, 3
	for threads := 1; threads <= 3; threads++ {
		m := openRandom(t, llamatest.Config{Heads: 4, KVHeads: 2, HeadDim: 8, FFN: 50, Layers: 1}, Options{Threads: threads, BlockTokens: 4})
		rng := rand.New(rand.NewPCG(uint64(threads), 1))
		seqs, alone := make([]engine.Sequence, sequences), make([]engine.Sequence, sequences)
		for i := range seqs {
			n := rng.IntN(20)
			if i%10 == 0 {
				n += 245
			}
			for _, s := range []*engine.Sequence{&seqs[i], &alone[i]} {
				*s, _ = m.NewSequence()
				if n > 0 {
					if _, err := (*s).Prefill(t.Context(), randomTokens(rand.New(rand.NewPCG(uint64(i), 2)), n, m.hparams.vocab)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for range steps {
			tokens := randomTokens(rng, sequences, m.hparams.vocab)
			logits, err := m.Step(t.Context(), seqs, tokens)
			if err != nil {
				t.Fatal(err)
			}
			for i := range seqs {
				want, err := alone[i].Prefill(t.Context(), tokens[i:i+1])
				if err != nil {
					t.Fatal(err)
				}
				got, _ := finish(seqs[i], m, logits[i])
				if want, _ := finish(alone[i], m, want); !got.equal(want) {
					t.Fatalf("%d threads, sequence %d at %d: other bits than alone", threads, i, seqs[i].Len())
				}
			}
		}
	}
}

func randomTokens(rng *rand.Rand, n, vocab int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = rng.Int32N(int32(vocab))
	}
	return tokens
}

// BenchmarkStep is what computing sequences together gains: tokens/s of all of them, at a context of 256 tokens.
func BenchmarkStep(b *testing.B) {
	for _, threads := range []int{1, 2} {
		m := openShipped(b, Options{Threads: threads})
		for _, n := range []int{1, 2, 4, 8, 16} {
			b.Run(fmt.Sprintf("threads=%d/sequences=%d", threads, n), func(b *testing.B) {
				const prompt, decoded = 250, 100
				seqs, tokens := make([]engine.Sequence, n), randomTokens(rand.New(rand.NewPCG(1, 1)), prompt, m.hparams.vocab)
				done := 0
				for b.Loop() {
					if done%decoded == 0 {
						b.StopTimer()
						for i := range seqs {
							if seqs[i] != nil {
								seqs[i].Close()
							}
							seqs[i], _ = m.NewSequence()
							if _, err := seqs[i].Prefill(b.Context(), tokens); err != nil {
								b.Fatal(err)
							}
						}
						b.StartTimer()
					}
					if _, err := m.Step(b.Context(), seqs, tokens[:n]); err != nil {
						b.Fatal(err)
					}
					done++
				}
				b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "tokens/s")
			})
		}
	}
}

func openShipped(tb testing.TB, opts Options) *Model {
	tb.Helper()
	data, err := models.FS.ReadFile(models.Default)
	if err != nil {
		tb.Fatal(err)
	}
	m, err := OpenReader(bytes.NewReader(data), int64(len(data)), models.Default, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

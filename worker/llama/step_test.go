package llama

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

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

// BenchmarkStep is what computing sequences together gains: tokens/s of all of them at a context of 256 tokens, and how many times that of
// one sequence it is. One and many take turns, and medians are compared, because the machine is never alone.
func BenchmarkStep(b *testing.B) {
	const prompt, steps, rounds = 240, 32, 9
	for _, threads := range []int{1, 2} {
		m := openShipped(b, Options{Threads: threads})
		tokens := randomTokens(rand.New(rand.NewPCG(1, 1)), prompt, m.hparams.vocab)
		rate := func(n int) float64 {
			seqs := make([]engine.Sequence, n)
			for i := range seqs {
				seqs[i], _ = m.NewSequence()
				defer seqs[i].Close()
				if _, err := seqs[i].Prefill(b.Context(), tokens); err != nil {
					b.Fatal(err)
				}
			}
			start := time.Now()
			for range steps {
				if _, err := m.Step(b.Context(), seqs, tokens[:n]); err != nil {
					b.Fatal(err)
				}
			}
			return float64(n*steps) / time.Since(start).Seconds()
		}
		for _, n := range []int{1, 2, 4, 8, 16} {
			b.Run(fmt.Sprintf("threads=%d/sequences=%d", threads, n), func(b *testing.B) {
				var one, many []float64
				for b.Loop() {
					for range rounds {
						one, many = append(one, rate(1)), append(many, rate(n))
					}
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(many), "tokens/s")
				b.ReportMetric(median(many)/median(one), "times-one")
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

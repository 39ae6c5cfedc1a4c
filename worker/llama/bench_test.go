package llama_test

import (
	"fmt"
	"testing"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/llama"
)

func someTokens(n, vocab int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32((i*7919 + i*i*31) % vocab)
	}
	return tokens
}

func BenchmarkPrefill(b *testing.B) {
	for _, threads := range []int{1, 2} {
		m := openEmbedded(b, models.Default, llama.Options{Threads: threads})
		tokens := someTokens(1000, m.Tokenizer().Vocab())
		b.Run(fmt.Sprintf("tokens=1000/threads=%d", threads), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				seq, _ := m.NewSequence()
				if _, err := seq.Prefill(b.Context(), tokens); err != nil {
					b.Fatal(err)
				}
				seq.Close()
			}
			b.ReportMetric(float64(len(tokens)*b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, threads := range []int{1, 2} {
		m := openEmbedded(b, models.Default, llama.Options{Threads: threads})
		tokens := someTokens(2000, m.Tokenizer().Vocab())
		b.Run(fmt.Sprintf("context=1000/threads=%d", threads), func(b *testing.B) {
			b.ReportAllocs()
			const prompt, decoded = 950, 100
			seq, _ := m.NewSequence()
			n := 0
			for b.Loop() {
				if n%decoded == 0 {
					b.StopTimer()
					seq.Close()
					seq, _ = m.NewSequence()
					if _, err := seq.Prefill(b.Context(), tokens[:prompt]); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				if _, err := seq.Prefill(b.Context(), tokens[prompt+n%decoded:][:1]); err != nil {
					b.Fatal(err)
				}
				n++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for b.Loop() {
		openEmbedded(b, models.Default, llama.Options{}).Close()
	}
}

func BenchmarkBlock(b *testing.B) {
	m := openEmbedded(b, models.Default, llama.Options{})
	l := m.Layout()
	seq, _ := m.NewSequence()
	if _, err := seq.Prefill(b.Context(), someTokens(l.BlockTokens, m.Tokenizer().Vocab())); err != nil {
		b.Fatal(err)
	}
	kv := make([]byte, l.PartBytes(l.Part(0)))
	b.Run("export", func(b *testing.B) {
		b.SetBytes(int64(len(kv)))
		for b.Loop() {
			if err := seq.Export(0, l.Part(0), kv); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("import", func(b *testing.B) {
		b.SetBytes(int64(len(kv)))
		for b.Loop() {
			if err := seq.Import(l.BlockTokens, l.Part(0), kv); err != nil {
				b.Fatal(err)
			}
		}
	})
}

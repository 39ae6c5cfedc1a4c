package enginetest

import (
	"bytes"
	"testing"

	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

// Tiny opens a real engine over a small model with random weights: 2 layers, 512 tokens of context, blocks of 16 tokens of 4 KiB, some 300
// tokens of vocabulary. Equal seeds give equal weights, other seeds other ones of the same shape. It opens in about
// 5 ms, computes a token in 10 to 30 µs, and closes with the test.
func Tiny(tb testing.TB, seed uint64) engine.Engine {
	tb.Helper()
	return TinyWith(tb, llamatest.Config{Seed: seed}, llama.Options{})
}

// TinyWith is Tiny in another shape.
func TinyWith(tb testing.TB, c llamatest.Config, opts llama.Options) engine.Engine {
	tb.Helper()
	file := llamatest.Random(c).Bytes()
	m, err := llama.OpenReader(bytes.NewReader(file), int64(len(file)), "tiny", opts)
	if err != nil {
		tb.Fatalf("enginetest: %v", err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Errorf("enginetest: close: %v", err)
		}
	})
	return m
}

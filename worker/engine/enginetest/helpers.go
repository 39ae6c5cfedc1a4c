package enginetest

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// prompt returns n random tokens.
func prompt(e engine.Engine, n int, seed uint64) []int32 {
	rng := rand.New(rand.NewPCG(seed, 3))
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = rng.Int32N(int32(e.Tokenizer().Vocab()))
	}
	return tokens
}

func newSequence(t *testing.T, e engine.Engine) engine.Sequence {
	t.Helper()
	s, err := e.NewSequence()
	if err != nil {
		t.Fatalf("NewSequence: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// prefill computes tokens in calls of the given sizes, the rest in one, and returns a copy of the last logits.
func prefill(t *testing.T, s engine.Sequence, tokens []int32, sizes ...int) []float32 {
	t.Helper()
	var logits []float32
	for len(tokens) > 0 {
		n := len(tokens)
		if len(sizes) > 0 {
			n, sizes = min(n, sizes[0]), sizes[1:]
		}
		var err error
		if logits, err = s.Prefill(t.Context(), tokens[:n]); err != nil {
			t.Fatalf("Prefill of %d tokens after %d: %v", n, s.Len(), err)
		}
		tokens = tokens[n:]
	}
	return append([]float32(nil), logits...)
}

// exportBlock returns the bytes of every part of the block at pos.
func exportBlock(t *testing.T, s engine.Sequence, l block.Layout, pos int) [][]byte {
	t.Helper()
	parts := make([][]byte, l.PartCount())
	for i := range parts {
		parts[i] = make([]byte, l.PartBytes(l.Part(i)))
		if err := s.Export(pos, l.Part(i), parts[i]); err != nil {
			t.Fatalf("Export of part %d at %d: %v", i, pos, err)
		}
	}
	return parts
}

func importBlock(t *testing.T, s engine.Sequence, l block.Layout, pos int, parts [][]byte) {
	t.Helper()
	for i, kv := range parts {
		if err := s.Import(pos, l.Part(i), kv); err != nil {
			t.Fatalf("Import of part %d at %d: %v", i, pos, err)
		}
	}
}

func skip(t *testing.T, s engine.Sequence, n int) {
	t.Helper()
	want := s.Len() + n
	if err := s.Skip(n); err != nil {
		t.Fatalf("Skip(%d) after %d: %v", n, s.Len(), err)
	}
	if s.Len() != want {
		t.Fatalf("Len is %d after Skip, want %d", s.Len(), want)
	}
}

func wantSameLogits(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d logits, want %d", what, len(got), len(want))
	}
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: logit %d is %v (%#08x), want %v (%#08x)", what, i, got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
		}
	}
}

func wantSameParts(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("%s: part %d has other bytes", what, i)
		}
	}
}

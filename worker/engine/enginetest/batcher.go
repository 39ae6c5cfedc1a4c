package enginetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// batcher opens an engine that has the power under test, and skips the test for one that has not.
func batcher(t *testing.T, open func(t *testing.T) engine.Engine) (engine.Engine, engine.Batcher) {
	t.Helper()
	e := open(t)
	b, ok := e.(engine.Batcher)
	if !ok {
		t.Skipf("%T is no engine.Batcher", e)
	}
	return e, b
}

// testStep advances sequences of mixed lengths together: some computed, some imported, some joining and leaving on the way. Each
// gives the bits that it gives alone.
func testStep(t *testing.T, open func(t *testing.T) engine.Engine) {
	e, b := batcher(t, open)
	l, n := e.Layout(), e.Layout().BlockTokens
	rng := rand.New(rand.NewPCG(20, 20))
	const sequences, steps = 4, 5
	var seqs, alone [sequences]engine.Sequence
	for i := range seqs {
		seqs[i], alone[i] = newSequence(t, e), newSequence(t, e)
		if i == 0 {
			continue // begins with a step
		}
		tokens := prompt(e, n+rng.IntN(n), uint64(20+i))
		prefill(t, alone[i], tokens)
		if i%2 == 0 {
			first := exportBlock(t, alone[i], l, 0)
			importBlock(t, seqs[i], l, 0, first)
			skip(t, seqs[i], n)
			if l.Quant != block.QuantNone { // what is computed behind a lossy block differs from what is behind the exact one
				alone[i] = newSequence(t, e)
				importBlock(t, alone[i], l, 0, first)
				skip(t, alone[i], n)
				prefill(t, alone[i], tokens[n:])
			}
		}
		if seqs[i].Len() < len(tokens) {
			prefill(t, seqs[i], tokens[seqs[i].Len():])
		}
	}
	for step := range steps {
		var batch []engine.Sequence
		var members []int
		for _, i := range rng.Perm(sequences) {
			if step == 0 || rng.IntN(3) > 0 {
				batch, members = append(batch, seqs[i]), append(members, i)
			}
		}
		tokens := prompt(e, len(batch), uint64(100+step))
		logits, err := b.Step(t.Context(), batch, tokens)
		if err != nil {
			t.Fatalf("Step of %d sequences: %v", len(batch), err)
		}
		if len(logits) != len(batch) {
			t.Fatalf("Step of %d sequences gives logits of %d", len(batch), len(logits))
		}
		for at, i := range members {
			want := prefill(t, alone[i], tokens[at:at+1])
			wantSameLogits(t, fmt.Sprintf("step %d, sequence %d of %d", step, i, len(batch)), logits[at], want)
			if got, want := seqs[i].Len(), alone[i].Len(); got != want {
				t.Fatalf("step %d: Len of sequence %d is %d, want %d", step, i, got, want)
			}
		}
	}
	for i := range seqs {
		for pos := 0; pos+n <= seqs[i].Len(); pos += n {
			wantSameParts(t, fmt.Sprintf("sequence %d, block at %d", i, pos), exportBlock(t, seqs[i], l, pos), exportBlock(t, alone[i], l, pos))
		}
	}
	// Logits belong to their sequence: other sequences' calls leave them alone.
	logits, err := b.Step(t.Context(), seqs[:2], []int32{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	kept := append([]float32(nil), logits[0]...)
	prefill(t, seqs[1], []int32{3})
	if _, err := b.Step(t.Context(), seqs[2:], []int32{4, 5}); err != nil {
		t.Fatal(err)
	}
	wantSameLogits(t, "after calls on other sequences", logits[0], kept)
}

// testStepRefusals puts one sequence that cannot be advanced beside one that can.
func testStepRefusals(t *testing.T, open func(t *testing.T) engine.Engine) {
	e, b := batcher(t, open)
	good, full, foreign := newSequence(t, e), newSequence(t, e), newSequence(t, open(t))
	closed, err := e.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	prefill(t, good, prompt(e, e.Layout().BlockTokens, 22))
	prefill(t, full, prompt(e, e.ContextTokens(), 22))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	live := t.Context()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		seqs   []engine.Sequence
		tokens []int32
		want   error // nil for any
	}{
		{"closed", live, []engine.Sequence{good, closed}, []int32{0, 0}, engine.ErrClosed},
		{"full", live, []engine.Sequence{good, full}, []int32{0, 0}, engine.ErrContextFull},
		{"cancelled", cancelled, []engine.Sequence{good}, []int32{0}, context.Canceled},
		{"of another engine", live, []engine.Sequence{good, foreign}, []int32{0, 0}, nil},
		{"nothing", live, []engine.Sequence{good, nil}, []int32{0, 0}, nil},
		{"twice the same", live, []engine.Sequence{good, good}, []int32{0, 0}, nil},
		{"too few tokens", live, []engine.Sequence{good}, nil, nil},
		{"too many tokens", live, []engine.Sequence{good}, []int32{0, 0}, nil},
		{"token below 0", live, []engine.Sequence{good}, []int32{-1}, nil},
		{"token outside the vocabulary", live, []engine.Sequence{good}, []int32{int32(e.Tokenizer().Vocab())}, nil},
	} {
		before := good.Len()
		_, err := b.Step(c.ctx, c.seqs, c.tokens)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want an error, of %v", c.name, err, c.want)
		}
		if good.Len() != before {
			t.Errorf("%s: the sequence beside it has grown", c.name)
		}
	}
	got, err := b.Step(live, []engine.Sequence{good}, []int32{0})
	if err != nil {
		t.Fatal(err)
	}
	want := prefill(t, newSequence(t, e), append(prompt(e, e.Layout().BlockTokens, 22), 0))
	wantSameLogits(t, "after refusals", got[0], want)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Step(live, []engine.Sequence{good}, []int32{0}); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Step after the engine was closed: %v, want ErrClosed", err)
	}
}

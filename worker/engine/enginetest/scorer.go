package enginetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/kvtier/kvtier/worker/engine"
)

// testScore holds the logits behind every token to those that Prefill returns when it ends there, over calls of several lengths.
func testScore(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	scorer, ok := e.(engine.Scorer)
	if !ok {
		t.Skipf("%T is no engine.Scorer", e)
	}
	n := e.Layout().BlockTokens
	tokens := prompt(e, 3*n+3, 31)
	want := make([][]float32, len(tokens))
	step := newSequence(t, e)
	for i := range tokens {
		want[i] = slices.Clone(prefill(t, step, tokens[i:i+1]))
	}
	for _, size := range []int{1, n - 1, len(tokens)} {
		s := newSequence(t, e)
		for at := 0; at < len(tokens); at += size {
			end, next := min(at+size, len(tokens)), at
			last, err := scorer.Score(t.Context(), s, tokens[at:end], func(i int, logits []float32) {
				if at+i != next {
					t.Errorf("%d tokens at once: visited %d, want %d", size, at+i, next)
				}
				wantSameLogits(t, fmt.Sprintf("%d tokens at once, behind token %d", size, at+i), logits, want[at+i])
				next++
			})
			if err != nil {
				t.Fatal(err)
			}
			if next != end || s.Len() != end {
				t.Errorf("%d tokens at once: visited up to %d, Len is %d, want %d", size, next, s.Len(), end)
			}
			wantSameLogits(t, "returned", last, want[end-1])
		}
		for pos := 0; pos+n <= len(tokens); pos += n {
			wantSameParts(t, fmt.Sprintf("block at %d", pos), exportBlock(t, s, e.Layout(), pos), exportBlock(t, step, e.Layout(), pos))
		}
	}
	ignore := func(int, []float32) {}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	s := newSequence(t, e)
	for name, err := range map[string]error{
		"no tokens":                      second(scorer.Score(t.Context(), s, nil, ignore)),
		"a token outside the vocabulary": second(scorer.Score(t.Context(), s, []int32{int32(e.Tokenizer().Vocab())}, ignore)),
		"no sequence":                    second(scorer.Score(t.Context(), nil, tokens, ignore)),
		"a sequence of another engine":   second(scorer.Score(t.Context(), newSequence(t, open(t)), tokens, ignore)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := second(scorer.Score(cancelled, s, tokens, ignore)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := second(scorer.Score(t.Context(), s, prompt(e, e.ContextTokens()+1, 32), ignore)); !errors.Is(err, engine.ErrContextFull) {
		t.Errorf("more than the context: %v", err)
	}
	if s.Len() != 0 {
		t.Errorf("Len is %d after refusals, want 0", s.Len())
	}
	closeNow(t, s)
	if err := second(scorer.Score(t.Context(), s, tokens, ignore)); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

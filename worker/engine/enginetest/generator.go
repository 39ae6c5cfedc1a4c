package enginetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/kvtier/kvtier/worker/engine"
)

// RunGenerator runs the suite of engines whose sequences are [engine.Generator]s and give out no logits. It compares greedy tokens where Run
// compares logits, and the K/V that was moved bit by bit. open returns a new engine with the same weights every time, with a
// context of at least MinContextBlocks blocks, that exports whatever is new; it closes the engine with the test.
func RunGenerator(t *testing.T, open func(t *testing.T) engine.Engine) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(t *testing.T, open func(t *testing.T) engine.Engine)
	}{
		{"Identity", testIdentity},
		{"Tokenizer", testTokenizer},
		{"ImportedBytesComeBack", testImportedBytesComeBack},
		{"ExportImportGenerate", testExportImportGenerate},
		{"MovedTwice", testMovedTwice},
		{"ImportedIsUsed", testImportedIsUsed},
		{"Resume", testResume},
		{"Limits", testLimits},
		{"Logprobs", testLogprobs},
		{"GenerateConcurrently", testGenerateConcurrently},
		{"GenerateContextFull", testGenerateContextFull},
		{"GenerateWrongArguments", testGenerateWrongArguments},
		{"GenerateCancelled", testGenerateCancelled},
		{"GenerateClosed", testGenerateClosed},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open) })
	}
}

// begin returns a sequence that is going to hold tokens.
func begin(t *testing.T, e engine.Engine, scope string, tokens []int32) engine.Sequence {
	t.Helper()
	s := newSequence(t, e)
	resume(t, s, scope, tokens)
	return s
}

func resume(t *testing.T, s engine.Sequence, scope string, tokens []int32) {
	t.Helper()
	r, ok := s.(engine.Resumer)
	if !ok {
		return
	}
	stored, err := r.Resume(t.Context(), tokens, func() string { return scope })
	if err != nil {
		t.Fatalf("Resume: %v", err)
	}
	if stored > s.Len() {
		t.Fatalf("Resume says that %d tokens are stored, Len is %d", stored, s.Len())
	}
}

// generate goes on from Len with the rest of tokens and returns up to n greedy tokens.
func generate(t *testing.T, s engine.Sequence, tokens []int32, n int) (out []int32) {
	t.Helper()
	err := s.(engine.Generator).Generate(t.Context(), tokens[s.Len():], engine.GenerateOptions{MaxTokens: n}, func(g engine.Generated) bool {
		out = append(out, g.Token)
		return true
	})
	if err != nil {
		t.Fatalf("Generate after %d tokens: %v", s.Len(), err)
	}
	return out
}

// scopes are different in every test, so that none finds what another has left in an engine's own memory.
func scopeOf(t *testing.T) string { return t.Name() }

// closeNow closes a sequence before its test ends, so that what it holds becomes free.
func closeNow(t *testing.T, s engine.Sequence) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

const generated = 6

// testExportImportGenerate moves a prompt's blocks to another engine with the same weights and generates there.
func testExportImportGenerate(t *testing.T, open func(t *testing.T) engine.Engine) {
	a, b := open(t), open(t)
	l := a.Layout()
	n := l.BlockTokens
	tokens := prompt(a, 3*n+3, 1)
	src := begin(t, a, scopeOf(t), tokens)
	want := generate(t, src, tokens, generated)
	if len(want) == 0 {
		t.Fatal("nothing was generated: the suite needs a model that does not end the text at once")
	}
	if src.Len() < len(tokens) {
		t.Fatalf("Len is %d after generating behind %d tokens: the suite needs an engine that exports whatever is new", src.Len(), len(tokens))
	}
	for _, blocks := range []int{1, 3} {
		dst := begin(t, b, fmt.Sprint(scopeOf(t), blocks), tokens)
		for pos := 0; pos < blocks*n; pos += n {
			importBlock(t, dst, l, pos, exportBlock(t, src, l, pos))
		}
		skip(t, dst, blocks*n)
		if got := generate(t, dst, tokens, generated); !slices.Equal(got, want) {
			t.Errorf("%d blocks imported: generated %v, want %v", blocks, got, want)
		}
		for pos := 0; pos < blocks*n; pos += n {
			wantSameParts(t, fmt.Sprintf("%d blocks imported, block at %d", blocks, pos), exportBlock(t, dst, l, pos), exportBlock(t, src, l, pos))
		}
		closeNow(t, dst)
	}
}

// testImportedIsUsed imports another prompt's K/V: an engine that computed everything anew would not notice.
func testImportedIsUsed(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	logprob := func(s engine.Sequence, tokens []int32) (p float32) {
		opts := engine.GenerateOptions{MaxTokens: 1, TopLogprobs: 1}
		err := s.(engine.Generator).Generate(t.Context(), tokens[s.Len():], opts, func(g engine.Generated) bool { p = g.Logprob; return true })
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	tokens, other := prompt(e, 2*n+1, 5), prompt(e, 2*n+1, 6)
	src := begin(t, e, scopeOf(t)+"/other", other)
	generate(t, src, other, 1)
	own := begin(t, e, scopeOf(t)+"/own", tokens)
	want := logprob(own, tokens)
	closeNow(t, own)
	dst := begin(t, e, scopeOf(t)+"/mixed", tokens)
	for pos := 0; pos < 2*n; pos += n {
		importBlock(t, dst, l, pos, exportBlock(t, src, l, pos))
	}
	skip(t, dst, 2*n)
	if got := logprob(dst, tokens); got == want {
		t.Errorf("behind another prompt's K/V the likeliest token has the same probability: the import was not used")
	}
}

// testMovedTwice moves what was imported on to a third sequence, together with what was computed behind it.
func testMovedTwice(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	tokens := prompt(e, 4*n+1, 2)
	s := begin(t, e, scopeOf(t)+"0", tokens)
	want := generate(t, s, tokens, generated)
	for i := 1; i <= 2; i++ {
		next := begin(t, e, fmt.Sprint(scopeOf(t), i), tokens)
		for pos := 0; pos < (1+i)*n; pos += n {
			importBlock(t, next, l, pos, exportBlock(t, s, l, pos))
		}
		skip(t, next, (1+i)*n)
		if got := generate(t, next, tokens, generated); !slices.Equal(got, want) {
			t.Fatalf("moved %d times: generated %v, want %v", i, got, want)
		}
		if next.Len() < 4*n {
			t.Fatalf("moved %d times: Len is %d, want at least %d", i, next.Len(), 4*n)
		}
		closeNow(t, s)
		s = next
	}
}

// testResume: an engine may go on from what it holds, in the same scope only, and the tokens stay the same.
func testResume(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	n := e.Layout().BlockTokens
	tokens := prompt(e, 3*n+1, 3)
	s := begin(t, e, scopeOf(t), tokens)
	if s.Len() != 0 {
		t.Fatalf("Len is %d in a scope that nobody has used", s.Len())
	}
	want := generate(t, s, tokens, generated)
	closeNow(t, s)
	for _, scope := range []string{"", scopeOf(t) + "/other", scopeOf(t)} {
		s := begin(t, e, scope, tokens)
		if s.Len() != 0 && scope != scopeOf(t) || s.Len()%n != 0 || s.Len() >= len(tokens) {
			t.Errorf("scope %q: Len is %d of %d tokens after Resume", scope, s.Len(), len(tokens))
		}
		if got := generate(t, s, tokens, generated); !slices.Equal(got, want) {
			t.Errorf("scope %q: generated %v, want %v", scope, got, want)
		}
		closeNow(t, s)
	}
}

func testLimits(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	n := e.Layout().BlockTokens
	tokens := prompt(e, 2*n, 4)
	s := begin(t, e, scopeOf(t)+"0", tokens)
	all := generate(t, s, tokens, generated)
	for most := range len(all) {
		s := begin(t, e, fmt.Sprint(scopeOf(t), "/", most), tokens)
		got := generate(t, s, tokens, most)
		if !slices.Equal(got, all[:most]) {
			t.Errorf("at most %d tokens: generated %v, want %v", most, got, all[:most])
		}
		if s.Len() < len(tokens) {
			t.Errorf("at most %d tokens: Len is %d, want at least %d", most, s.Len(), len(tokens))
		}
		closeNow(t, s)
	}
	s = begin(t, e, scopeOf(t)+"/stop", tokens)
	var got []int32
	err := s.(engine.Generator).Generate(t.Context(), tokens, engine.GenerateOptions{MaxTokens: generated}, func(g engine.Generated) bool {
		got = append(got, g.Token)
		return len(got) < 2
	})
	if err != nil || !slices.Equal(got, all[:min(2, len(all))]) {
		t.Errorf("stopped behind the second token: generated %v, error %v, want %v", got, err, all[:2])
	}
}

func testLogprobs(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	tokens := prompt(e, 2*e.Layout().BlockTokens, 4)
	s := begin(t, e, scopeOf(t), tokens)
	err := s.(engine.Generator).Generate(t.Context(), tokens, engine.GenerateOptions{MaxTokens: 3, TopLogprobs: 2}, func(g engine.Generated) bool {
		switch {
		case len(g.Top) != 2:
			t.Errorf("%d likeliest tokens, want 2", len(g.Top))
		case g.Top[0].Token != g.Token || math.Abs(float64(g.Top[0].Logprob-g.Logprob)) > 1e-3:
			t.Errorf("greedy token %d (%v) is not the likeliest, %d (%v)", g.Token, g.Logprob, g.Top[0].Token, g.Top[0].Logprob)
		case g.Logprob > 0 || g.Top[1].Logprob > g.Top[0].Logprob:
			t.Errorf("logprobs %v and %v, want negative ones in order", g.Logprob, g.Top)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testGenerateConcurrently(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	const sequences = 6
	var wg sync.WaitGroup
	errs := make([]error, sequences)
	for i := range sequences {
		wg.Go(func() {
			errs[i] = func() error {
				tokens := prompt(e, e.Layout().BlockTokens+5*i+1, uint64(10+i))
				s, err := e.NewSequence()
				if err != nil {
					return err
				}
				defer s.Close()
				if r, ok := s.(engine.Resumer); ok {
					if _, err := r.Resume(t.Context(), tokens, func() string { return fmt.Sprint(t.Name(), i) }); err != nil {
						return err
					}
				}
				got := 0
				err = s.(engine.Generator).Generate(t.Context(), tokens, engine.GenerateOptions{MaxTokens: generated}, func(engine.Generated) bool { got++; return true })
				if err == nil && got > generated {
					err = fmt.Errorf("%d tokens, want at most %d", got, generated)
				}
				return err
			}()
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("sequence %d: %v", i, err)
		}
	}
}

func testGenerateContextFull(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	limit := e.ContextTokens()
	for _, c := range []struct{ tokens, most int }{{limit + 1, 0}, {limit, 1}, {1, limit}} {
		tokens := prompt(e, c.tokens, 7)
		s := begin(t, e, scopeOf(t), tokens)
		err := s.(engine.Generator).Generate(t.Context(), tokens, engine.GenerateOptions{MaxTokens: c.most}, func(engine.Generated) bool { return true })
		if !errors.Is(err, engine.ErrContextFull) {
			t.Errorf("%d tokens and %d more in a context of %d: %v, want ErrContextFull", c.tokens, c.most, limit, err)
		}
		if s.Len() != 0 {
			t.Errorf("Len is %d after a refusal, want 0", s.Len())
		}
		closeNow(t, s)
	}
}

func testGenerateWrongArguments(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	s := newSequence(t, e)
	p := l.Part(0)
	kv := make([]byte, l.PartBytes(p))
	vocab := int32(e.Tokenizer().Vocab())
	compute := func(tokens ...int32) error {
		return s.(engine.Generator).Generate(t.Context(), tokens, engine.GenerateOptions{MaxTokens: 1}, func(engine.Generated) bool { return true })
	}
	for _, c := range []struct {
		name string
		err  error
	}{
		{"import of too few bytes", s.Import(0, p, kv[1:])},
		{"import before the beginning", s.Import(-1, p, kv)},
		{"import past the context", s.Import(e.ContextTokens()-n+1, p, kv)},
		{"export past Len", s.Export(0, p, kv)},
		{"skip backwards", s.Skip(-1)},
		{"generate behind nothing", compute()},
		{"a negative token", compute(0, -1)},
		{"a token outside the vocabulary", compute(0, vocab)},
	} {
		if c.err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
	if err := s.Skip(1); !errors.Is(err, engine.ErrNotImported) {
		t.Errorf("Skip over nothing: %v, want ErrNotImported", err)
	}
	if s.Len() != 0 {
		t.Errorf("Len is %d after refusals, want 0", s.Len())
	}
}

// testGenerateCancelled: whoever leaves gives back what was taken.
func testGenerateCancelled(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	tokens := prompt(e, 2*e.Layout().BlockTokens, 9)
	for i := range 20 {
		s := begin(t, e, scopeOf(t), tokens)
		ctx, cancel := context.WithCancel(t.Context())
		err := s.(engine.Generator).Generate(ctx, tokens[s.Len():], engine.GenerateOptions{MaxTokens: 50}, func(engine.Generated) bool {
			cancel()
			return true
		})
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled in round %d: %v, want context.Canceled", i, err)
		}
		closeNow(t, s)
	}
	s := begin(t, e, scopeOf(t), tokens)
	got := generate(t, s, tokens, generated)
	if want := generate(t, begin(t, e, scopeOf(t)+"/anew", tokens), tokens, generated); !slices.Equal(got, want) {
		t.Errorf("after cancelled ones: generated %v, want %v", got, want)
	}
}

func testGenerateClosed(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l := e.Layout()
	s, err := e.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	closeNow(t, s)
	closeNow(t, s)
	kv := make([]byte, l.PartBytes(l.Part(0)))
	for name, err := range map[string]error{
		"Import": s.Import(0, l.Part(0), kv), "Export": s.Export(0, l.Part(0), kv), "Skip": s.Skip(1),
		"Generate": s.(engine.Generator).Generate(t.Context(), []int32{0}, engine.GenerateOptions{MaxTokens: 1}, func(engine.Generated) bool { return true }),
	} {
		if !errors.Is(err, engine.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatalf("Close of the engine: %v", err)
	}
	if _, err := e.NewSequence(); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("NewSequence after Close: %v, want ErrClosed", err)
	}
}

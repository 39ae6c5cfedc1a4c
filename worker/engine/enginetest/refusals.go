package enginetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

func testIdentity(t *testing.T, open func(t *testing.T) engine.Engine) {
	a, b := open(t), open(t)
	l := a.Layout()
	if err := l.Validate(); err != nil {
		t.Errorf("layout: %v", err)
	}
	if a.Identity().Weights.IsZero() {
		t.Error("the weights have no digest")
	}
	if got, want := a.Identity().Layout, l.Digest(); got != want {
		t.Errorf("Identity.Layout is %v, want the layout's digest %v", got, want)
	}
	if a.Identity() != b.Identity() || a.Layout() != b.Layout() {
		t.Errorf("opened twice, the engine is %v with %+v, then %v with %+v", a.Identity(), a.Layout(), b.Identity(), b.Layout())
	}
	if a.Name() == "" {
		t.Error("the engine has no name")
	}
	if n := a.ContextTokens(); n < MinContextBlocks*l.BlockTokens {
		t.Errorf("the context is %d tokens: the suite needs %d blocks of %d", n, MinContextBlocks, l.BlockTokens)
	}
}

func testTokenizer(t *testing.T, open func(t *testing.T) engine.Engine) {
	tok := open(t).Tokenizer()
	for _, text := range []string{"", "a", " ", "hello world", "  two  spaces ", "line\nbreak\ttab", "naïve 你好 🙂", "\x00\x7f"} {
		tokens := tok.Encode(text)
		for _, id := range tokens {
			if id < 0 || int(id) >= tok.Vocab() {
				t.Errorf("Encode(%q) gives token %d, outside the vocabulary of %d", text, id, tok.Vocab())
			}
		}
		if got := tok.Decode(tokens); got != text {
			t.Errorf("Decode(Encode(%q)) = %q", text, got)
		}
	}
	if eos := tok.EOS(); eos < -1 || int(eos) >= tok.Vocab() {
		t.Errorf("EOS is %d, want -1 or a token below %d", eos, tok.Vocab())
	}
	tok.Decode([]int32{-1, int32(tok.Vocab())}) // must not panic
}

func testContextFull(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	limit := e.ContextTokens()
	s := newSequence(t, e)
	if _, err := s.Prefill(t.Context(), prompt(e, limit+1, 7)); !errors.Is(err, engine.ErrContextFull) {
		t.Errorf("Prefill of one token too many: %v, want ErrContextFull", err)
	}
	if s.Len() != 0 {
		t.Fatalf("Len is %d after a refused prefill, want 0", s.Len())
	}
	prefill(t, s, prompt(e, limit, 7))
	if _, err := s.Prefill(t.Context(), []int32{0}); !errors.Is(err, engine.ErrContextFull) {
		t.Errorf("Prefill into a full context: %v, want ErrContextFull", err)
	}
	if s.Len() != limit {
		t.Errorf("Len is %d, want %d", s.Len(), limit)
	}
}

func testWrongArguments(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	s := newSequence(t, e)
	prefill(t, s, prompt(e, n, 8))
	p := l.Part(0)
	kv := make([]byte, l.PartBytes(p))
	want := exportBlock(t, s, l, 0)
	last := l.Part(l.PartCount() - 1)
	for _, c := range []struct {
		name string
		err  error
	}{
		{"import of too few bytes", s.Import(n, p, kv[1:])},
		{"import of too many bytes", s.Import(n, p, append(kv, 0))},
		{"import of nothing", s.Import(n, p, nil)},
		{"import before the beginning", s.Import(-1, p, kv)},
		{"import past the context", s.Import(e.ContextTokens()-n+1, p, kv)},
		{"import of an unknown part", s.Import(n, block.Part{Index: l.PartCount(), Bytes: p.Bytes}, kv)},
		{"import of a negative part", s.Import(n, block.Part{Index: -1, Bytes: p.Bytes}, kv)},
		{"import of other bytes", s.Import(n, block.Part{Index: 0, Offset: last.End(), Bytes: p.Bytes}, kv)},
		{"export of too few bytes", s.Export(0, p, kv[1:])},
		{"export of too many bytes", s.Export(0, p, append(kv, 0))},
		{"export before the beginning", s.Export(-1, p, kv)},
		{"export past Len", s.Export(1, p, kv)},
		{"skip backwards", s.Skip(-1)},
	} {
		if c.err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
	vocab := int32(e.Tokenizer().Vocab())
	for _, token := range []int32{-1, vocab, 1 << 30} {
		if _, err := s.Prefill(t.Context(), []int32{0, token}); err == nil {
			t.Errorf("Prefill of token %d: no error", token)
		}
	}
	if s.Len() != n {
		t.Errorf("Len is %d after refusals, want %d", s.Len(), n)
	}
	wantSameParts(t, "after refusals", exportBlock(t, s, l, 0), want)
}

func testCancelled(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	tokens := prompt(e, 2*e.Layout().BlockTokens, 9)
	want := slices.Clone(prefill(t, newSequence(t, e), tokens))
	// At every look that the engine takes at ctx, up to some: before it begins, and in the middle.
	for looks := range 12 {
		s := newSequence(t, e)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := s.Prefill(&ending{Context: ctx, cancel: cancel, after: looks}, tokens)
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Prefill with a context that ends at look %d: %v, want context.Canceled", looks, err)
		}
		if looks == 0 && err == nil {
			t.Error("Prefill with a cancelled context: no error")
		}
		// Whatever was finished counts, and the sequence goes on from there.
		done := s.Len()
		if done > len(tokens) {
			t.Fatalf("Len is %d after %d tokens", done, len(tokens))
		}
		if done < len(tokens) {
			wantSameLogits(t, fmt.Sprintf("after a prefill that was cancelled at look %d", looks), prefill(t, s, tokens[done:]), want)
		}
	}
}

// ending is a context that ends when it has been looked at so many times.
type ending struct {
	context.Context
	cancel context.CancelFunc
	after  int
}

func (c *ending) Err() error {
	if c.after == 0 {
		c.cancel()
	}
	c.after--
	return c.Context.Err()
}

func testClosed(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l := e.Layout()
	s, err := e.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	prefill(t, s, prompt(e, l.BlockTokens, 10))
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	kv := make([]byte, l.PartBytes(l.Part(0)))
	_, prefillErr := s.Prefill(t.Context(), []int32{0})
	for name, err := range map[string]error{
		"Prefill": prefillErr, "Import": s.Import(0, l.Part(0), kv), "Export": s.Export(0, l.Part(0), kv), "Skip": s.Skip(1),
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

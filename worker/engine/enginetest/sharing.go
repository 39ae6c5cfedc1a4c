package enginetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// testExportImportDecode moves a prompt's blocks to another engine with the same weights and goes on decoding there.
func testExportImportDecode(t *testing.T, open func(t *testing.T) engine.Engine) {
	a, b := open(t), open(t)
	l := a.Layout()
	tokens := prompt(a, 2*l.BlockTokens+3, 1)
	src, dst := newSequence(t, a), newSequence(t, b)
	prefill(t, src, tokens)
	for pos := 0; pos < 2*l.BlockTokens; pos += l.BlockTokens {
		importBlock(t, dst, l, pos, exportBlock(t, src, l, pos))
	}
	skip(t, dst, 2*l.BlockTokens)
	got := prefill(t, dst, tokens[dst.Len():])
	whole := newSequence(t, a)
	want := prefill(t, whole, tokens)
	for step := range 5 {
		wantSameLogits(t, fmt.Sprintf("step %d after import", step), got, want)
		next := []int32{int32(step)}
		got, want = prefill(t, dst, next), prefill(t, whole, next)
	}
	wantSameParts(t, "imported block", exportBlock(t, dst, l, 0), exportBlock(t, whole, l, 0))
}

// testImportAfterHole imports the third block first, computes the first, and imports the second last.
func testImportAfterHole(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	tokens := prompt(e, 4*n, 2)
	whole := newSequence(t, e)
	want := prefill(t, whole, tokens)

	s := newSequence(t, e)
	importBlock(t, s, l, 2*n, exportBlock(t, whole, l, 2*n))
	if s.Len() != 0 {
		t.Fatalf("Len is %d after an import behind a hole, want 0", s.Len())
	}
	prefill(t, s, tokens[:n], 1)
	if s.Len() != n {
		t.Fatalf("Len is %d after computing the first block, want %d", s.Len(), n)
	}
	if err := s.Skip(2 * n); !errors.Is(err, engine.ErrNotImported) {
		t.Fatalf("Skip over the hole: %v, want ErrNotImported", err)
	}
	importBlock(t, s, l, n, exportBlock(t, whole, l, n))
	skip(t, s, 2*n)
	wantSameLogits(t, "after the hole was filled", prefill(t, s, tokens[3*n:]), want)

	// Filling the hole by computing over it, and over what was imported behind it.
	s = newSequence(t, e)
	importBlock(t, s, l, n, exportBlock(t, whole, l, n))
	wantSameLogits(t, "computed over an import", prefill(t, s, tokens, n/2, n), want)
}

// testImportAnyPosition imports blocks that begin between the multiples of BlockTokens, in pieces that overlap.
func testImportAnyPosition(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	tokens := prompt(e, 3*n, 3)
	whole := newSequence(t, e)
	want := prefill(t, whole, tokens)
	s := newSequence(t, e)
	const first = 1
	prefill(t, s, tokens[:first])
	half := max(1, n/2)
	for pos := first; pos <= first+n; pos += half {
		importBlock(t, s, l, pos, exportBlock(t, whole, l, pos))
	}
	skip(t, s, n)
	wantSameLogits(t, "after odd positions", prefill(t, s, tokens[s.Len():]), want)
}

// testImportedBytesComeBack holds for any bytes: what they mean is not the cache's business.
func testImportedBytesComeBack(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l := e.Layout()
	s := newSequence(t, e)
	rng := rand.New(rand.NewPCG(4, 4))
	parts := make([][]byte, l.PartCount())
	for i := range parts {
		parts[i] = make([]byte, l.PartBytes(l.Part(i)))
		for j := range parts[i] {
			parts[i][j] = byte(rng.Uint32())
		}
	}
	importBlock(t, s, l, 0, parts)
	skip(t, s, l.BlockTokens)
	wantSameParts(t, "random bytes", exportBlock(t, s, l, 0), parts)
	clear(parts[0])
	if got := exportBlock(t, s, l, 0); string(got[0]) == string(parts[0]) {
		t.Error("the sequence keeps the bytes that were passed to Import")
	}
}

// testPartsOfOverlappingBlocks imports a block without its last part, and the last parts of its neighbours on either side: those end elsewhere,
// so that a row of the block is still missing although each of its positions has seen every part.
func testPartsOfOverlappingBlocks(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	last := l.Part(l.PartCount() - 1)
	if last.Index == 0 || l.Quant == block.QuantNone && last.Bytes/l.RowBytes()%n == 0 {
		t.Skip("parts of this layout end with a layer's keys or values")
	}
	tokens := prompt(e, 3*n, 6)
	whole, s := newSequence(t, e), newSequence(t, e)
	prefill(t, whole, tokens)
	prefill(t, s, tokens[:n])
	parts := exportBlock(t, whole, l, n)
	for i := range last.Index {
		if err := s.Import(n, l.Part(i), parts[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, pos := range []int{n - 1, n + 1} {
		if err := s.Import(pos, last, exportBlock(t, whole, l, pos)[last.Index]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Skip(n); !errors.Is(err, engine.ErrNotImported) {
		t.Errorf("Skip over a block with a row missing: %v, want ErrNotImported", err)
	}
	if err := s.Import(n, last, parts[last.Index]); err != nil {
		t.Fatal(err)
	}
	skip(t, s, n)
}

func testSkipNotImported(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	whole, s := newSequence(t, e), newSequence(t, e)
	prefill(t, whole, prompt(e, n, 5))
	if err := s.Skip(1); !errors.Is(err, engine.ErrNotImported) {
		t.Errorf("Skip over nothing: %v, want ErrNotImported", err)
	}
	parts := exportBlock(t, whole, l, 0)
	for i := range len(parts) - 1 { // all parts but the last
		if err := s.Import(0, l.Part(i), parts[i]); err != nil {
			t.Fatal(err)
		}
		if err := s.Skip(n); !errors.Is(err, engine.ErrNotImported) {
			t.Errorf("Skip with %d of %d parts: %v, want ErrNotImported", i+1, len(parts), err)
		}
	}
	importBlock(t, s, l, 0, parts)
	if err := s.Skip(n + 1); !errors.Is(err, engine.ErrNotImported) {
		t.Errorf("Skip past the import: %v, want ErrNotImported", err)
	}
	if s.Len() != 0 {
		t.Errorf("Len is %d after refused skips, want 0", s.Len())
	}
	skip(t, s, n)
}

// testBatchInvariance computes the same tokens in different splits.
func testBatchInvariance(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	l, n := e.Layout(), e.Layout().BlockTokens
	tokens := prompt(e, 3*n+1, 6)
	whole := newSequence(t, e)
	want := prefill(t, whole, tokens)
	sevens := make([]int, len(tokens))
	for i := range sevens {
		sevens[i] = 7
	}
	ones := make([]int, len(tokens))
	for i := range ones {
		ones[i] = 1
	}
	for name, sizes := range map[string][]int{"one at a time": ones, "seven at a time": sevens, "first alone": {1}, "last alone": {len(tokens) - 1}} {
		s := newSequence(t, e)
		wantSameLogits(t, name, prefill(t, s, tokens, sizes...), want)
		for pos := 0; pos+n <= len(tokens); pos += n {
			wantSameParts(t, fmt.Sprintf("%s, block at %d", name, pos), exportBlock(t, s, l, pos), exportBlock(t, whole, l, pos))
		}
	}
}

// testConcurrentSequences computes different prompts on one engine at once.
func testConcurrentSequences(t *testing.T, open func(t *testing.T) engine.Engine) {
	e := open(t)
	const sequences = 4
	var want [sequences][]float32
	var seqs [sequences]engine.Sequence
	tokens := func(i int) []int32 { return prompt(e, e.Layout().BlockTokens+5*i+1, uint64(10+i)) }
	for i := range want {
		want[i] = prefill(t, newSequence(t, e), tokens(i))
		seqs[i] = newSequence(t, e)
	}
	var got [sequences][]float32
	var errs [sequences]error
	var wg sync.WaitGroup
	for i, s := range seqs {
		wg.Go(func() {
			for _, token := range tokens(i) {
				logits, err := s.Prefill(t.Context(), []int32{token})
				if err != nil {
					errs[i] = err
					return
				}
				got[i] = append(got[i][:0], logits...)
			}
		})
	}
	wg.Wait()
	for i := range want {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		wantSameLogits(t, fmt.Sprintf("sequence %d", i), got[i], want[i])
	}
}

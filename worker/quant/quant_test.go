package quant_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
	"github.com/kvtier/kvtier/worker/quant"
	"github.com/kvtier/kvtier/worker/workertest"
)

func tiny(t *testing.T, seed uint64, q block.Quant) engine.Engine {
	t.Helper()
	e, err := quant.Wrap(enginetest.Tiny(t, seed), q)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestConformance(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) engine.Engine { return tiny(t, 1, block.QuantInt8) })
}

// Blocks in several parts, which end at other places in the two forms.
func TestConformanceOfSeveralParts(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) engine.Engine {
		e, err := quant.Wrap(enginetest.TinyWith(t, several, llama.Options{}), block.QuantInt8)
		if err != nil {
			t.Fatal(err)
		}
		if exact := e.Layout().Exact(); e.Layout().PartCount() < 2 || exact.PartCount() < 2 || exact.Part(0).Bytes*e.Layout().BlockBytes() == e.Layout().Part(0).Bytes*exact.BlockBytes() {
			t.Fatalf("parts %+v and %+v", e.Layout().Parts(), exact.Parts())
		}
		return e
	})
}

// several makes blocks of 1,056 KiB, and 549 KiB in eight bits.
var several = llamatest.Config{Layers: 33, Heads: 8, KVHeads: 8, HeadDim: 64, Dim: 8, FFN: 8, Context: 100}

func TestIdentityIsAnother(t *testing.T) {
	exact, int8 := tiny(t, 1, block.QuantNone), tiny(t, 1, block.QuantInt8)
	a, b := exact.Identity(), int8.Identity()
	if a.Weights != b.Weights || a.Layout == b.Layout || a.Variant() == b.Variant() {
		t.Errorf("identities %v and %v: want the same weights and nothing else in common", a, b)
	}
	if b.Layout != int8.Layout().Digest() {
		t.Error("the identity does not name the layout")
	}
	if exact.Layout().Quant != block.QuantNone {
		t.Error("QuantNone wraps the engine")
	}
	if _, err := quant.Wrap(int8, block.QuantInt8); err == nil {
		t.Error("quantised twice")
	}
	if _, err := quant.Wrap(exact, 7); err == nil {
		t.Error("an unknown quantisation is taken")
	}
}

func export(t *testing.T, s engine.Sequence, l block.Layout, pos int) (parts [][]byte) {
	t.Helper()
	for i := range l.PartCount() {
		dst := make([]byte, l.PartBytes(l.Part(i)))
		if err := s.Export(pos, l.Part(i), dst); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, dst)
	}
	return parts
}

// A block that is imported and exported again, by worker after worker, keeps its bytes.
func TestErrorsDoNotAddUp(t *testing.T) {
	t.Run("one part", func(t *testing.T) { errorsDoNotAddUp(t, tiny(t, 2, block.QuantInt8)) })
	t.Run("several parts", func(t *testing.T) {
		e, err := quant.Wrap(enginetest.TinyWith(t, several, llama.Options{}), block.QuantInt8)
		if err != nil {
			t.Fatal(err)
		}
		errorsDoNotAddUp(t, e)
	})
}

func errorsDoNotAddUp(t *testing.T, e engine.Engine) {
	l := e.Layout()
	tokens := make([]int32, l.BlockTokens)
	for i := range tokens {
		tokens[i] = int32(3 + i*11%200)
	}
	s, err := e.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Prefill(t.Context(), tokens); err != nil {
		t.Fatal(err)
	}
	first := export(t, s, l, 0)
	for range 3 {
		next, err := e.NewSequence()
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		for i, p := range first {
			if err := next.Import(0, l.Part(i), p); err != nil {
				t.Fatal(err)
			}
		}
		if err := next.Skip(l.BlockTokens); err != nil {
			t.Fatal(err)
		}
		if got := export(t, next, l, 0); !slices.EqualFunc(got, first, bytes.Equal) {
			t.Fatal("a block has other bytes after import and export")
		}
	}
}

func replica(t *testing.T, e engine.Engine, remote *memstore.Store) *worker.Replica {
	t.Helper()
	return workertest.Start(t, worker.Options{Engine: e, Label: "tiny", Gate: gate.Always},
		tiered.Options{Remote: remote, ProbeTimeout: 10 * time.Second, FetchTimeout: 10 * time.Second})
}

func complete(t *testing.T, r *worker.Replica) worker.Result {
	t.Helper()
	prompt := make([]int32, 70)
	for i := range prompt {
		prompt[i] = int32(3 + i*7%200)
	}
	res, err := r.Complete(t.Context(), worker.Request{Tokens: prompt, MaxTokens: 12})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Cache().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return res
}

// Exact and quantised workers of the same weights on one Redis share nothing. Within the quantised fleet output depends on what was reused,
// not on the tier that it came from, and a worker that reuses nothing computes what an exact one does.
func TestFleetsShareNothing(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	exact := complete(t, replica(t, tiny(t, 3, block.QuantNone), remote))
	int8 := replica(t, tiny(t, 3, block.QuantInt8), remote)
	cold := complete(t, int8)
	if exact.CachedTokens() != 0 || cold.CachedTokens() != 0 {
		t.Errorf("%d and %d tokens reused by the first requests: a quantised worker used what an exact one stored", exact.CachedTokens(), cold.CachedTokens())
	}
	if !slices.Equal(cold.Tokens, exact.Tokens) {
		t.Errorf("without reuse %v, exactly %v", cold.Tokens, exact.Tokens)
	}
	hot := complete(t, int8)
	distant := complete(t, replica(t, tiny(t, 3, block.QuantInt8), remote))
	if hot.HotTokens != 64 || distant.RemoteTokens != 64 {
		t.Errorf("%d tokens reused from the hot tier and %d from the remote one, want 64 each", hot.HotTokens, distant.RemoteTokens)
	}
	if !slices.Equal(hot.Tokens, distant.Tokens) {
		t.Errorf("output depends on the tier: %v from the hot one, %v from the remote one", hot.Tokens, distant.Tokens)
	}
	again := complete(t, replica(t, tiny(t, 3, block.QuantNone), remote))
	if again.RemoteTokens != 64 || !slices.Equal(again.Tokens, exact.Tokens) {
		t.Errorf("a second exact worker reused %d tokens, output %v; want 64 and %v", again.RemoteTokens, again.Tokens, exact.Tokens)
	}
}

// Steps for several sequences at once reach the engine, and give the bits that the engine gives for what it has computed itself.
func TestStepsPassThrough(t *testing.T) {
	exact, int8 := tiny(t, 4, block.QuantNone), tiny(t, 4, block.QuantInt8)
	b, ok := int8.(engine.Batcher)
	if !ok {
		t.Fatal("the power of the engine within is gone")
	}
	var seqs []engine.Sequence
	var want [][]float32
	for i := range 3 {
		tokens := []int32{int32(3 + i), int32(20 + i), 7}
		alone, err := exact.NewSequence()
		if err != nil {
			t.Fatal(err)
		}
		defer alone.Close()
		logits, err := alone.Prefill(t.Context(), tokens)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, logits)
		s, err := int8.NewSequence()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Prefill(t.Context(), tokens[:2]); err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, s)
	}
	got, err := b.Step(t.Context(), seqs, []int32{7, 7, 7})
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if !slices.Equal(got[i], want[i]) {
			t.Errorf("sequence %d: a step gives other logits than the engine alone", i)
		}
	}
	foreign, err := exact.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := b.Step(t.Context(), []engine.Sequence{foreign}, []int32{7}); err == nil {
		t.Error("a sequence of another engine is taken")
	}
}

// slotted is an engine that has room for so many sequences.
type slotted struct{ engine.Engine }

func (slotted) Sequences() int { return 7 }

func TestRoomIsThatOfTheEngineWithin(t *testing.T) {
	for want, e := range map[int]engine.Engine{7: slotted{enginetest.Tiny(t, 1)}, 0: enginetest.Tiny(t, 1)} {
		w, err := quant.Wrap(e, block.QuantInt8)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.(engine.Parallel).Sequences(); got != want {
			t.Errorf("room for %d sequences, want %d", got, want)
		}
	}
}

package worker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
)

// paced is an engine that takes a given time for each token, and whose K/V is a digest of all tokens so far: a block in the wrong place, or of
// another prompt, is noticed where it begins to count.
type paced struct {
	prefill gate.Prefill
}

var pacedLayout = block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 1, KVHeads: 1, HeadDim: 256, BlockTokens: 16,
	TPSize: 1, RopeBase: 1, RopeScale: 1, Numerics: "paced/1"}

type letters struct{}

func (letters) Encode(text string) []int32 {
	tokens := make([]int32, len(text))
	for i := range tokens {
		tokens[i] = int32(text[i])
	}
	return tokens
}
func (letters) Decode([]int32) string { return "" }
func (letters) EOS() int32            { return -1 }
func (letters) Vocab() int            { return 256 }

func (e *paced) Layout() block.Layout        { return pacedLayout }
func (e *paced) Name() string                { return "paced" }
func (e *paced) ContextTokens() int          { return 1 << 20 }
func (e *paced) Tokenizer() engine.Tokenizer { return letters{} }
func (e *paced) Close() error                { return nil }
func (e *paced) Identity() block.Identity {
	return block.Identity{Weights: block.Digest{1}, Layout: pacedLayout.Digest()}
}
func (e *paced) NewSequence() (engine.Sequence, error) { return &pacedSequence{e: e}, nil }

type pacedSequence struct {
	e      *paced
	tokens []int32        // of which the K/V is there
	kv     map[int][]byte // imported, by position
	logits [256]float32
}

// digest is the K/V of the block that ends behind tokens.
func digest(tokens []int32) []byte {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, tokens)
	return h.Sum(nil)
}

func (s *pacedSequence) Len() int { return len(s.tokens) }

func (s *pacedSequence) Prefill(ctx context.Context, tokens []int32) ([]float32, error) {
	if err := sleepUntil(ctx, time.Now().Add(time.Duration(s.e.prefill.Seconds(len(s.tokens), len(tokens))*float64(time.Second)))); err != nil {
		return nil, err
	}
	s.tokens = append(s.tokens, tokens...)
	s.logits = [256]float32{}
	s.logits[digest(s.tokens)[0]] = 1
	return s.logits[:], nil
}

func (s *pacedSequence) Import(pos int, _ block.Part, kv []byte) error {
	if s.kv == nil {
		s.kv = map[int][]byte{}
	}
	s.kv[pos] = slices.Clone(kv)
	return nil
}

// Skip cannot know the tokens that it passes over: the payload carries them.
func (s *pacedSequence) Skip(n int) error {
	for range n / pacedLayout.BlockTokens {
		kv, ok := s.kv[len(s.tokens)]
		if !ok {
			return engine.ErrNotImported
		}
		for i := range pacedLayout.BlockTokens {
			s.tokens = append(s.tokens, int32(kv[32+i]))
		}
		if !bytes.Equal(kv[:32], digest(s.tokens)) {
			return fmt.Errorf("the block that ends at %d is of another prompt", len(s.tokens))
		}
	}
	return nil
}

func (s *pacedSequence) Export(pos int, _ block.Part, dst []byte) error {
	end := pos + pacedLayout.BlockTokens
	copy(dst, digest(s.tokens[:end]))
	for i, t := range s.tokens[pos:end] {
		dst[32+i] = byte(t)
	}
	return nil
}

func (s *pacedSequence) Close() error { return nil }

// gated is a worker with a paced engine.
func gated(t testing.TB, remote store.Store, e *paced, gate gate.Mode) *worker.Replica {
	t.Helper()
	c, err := tiered.New(tiered.Options{Layout: pacedLayout, Remote: remote})
	if err != nil {
		t.Fatal(err)
	}
	r, err := worker.NewReplica(worker.Options{Engine: e, Cache: c, Gate: gate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
		cancel() // what is queued need not be stored
		c.Close(ctx)
	})
	return r
}

func text(seed, n int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32(digest([]int32{int32(seed), int32(i)})[0])
	}
	return tokens
}

// gateWorld is two workers with paced engines: one that fills the tier, and one that is measured, behind a link.
type gateWorld struct {
	t              *testing.T
	e              *paced
	link           *slow
	writer, reader *worker.Replica
	always         *worker.Replica // the same as reader, without a gate
	cold           float64         // seconds to compute a prompt
	seed           int
}

const gatedPrompt, gatedBlocks = 1505, 94

func newGateWorld(t *testing.T) *gateWorld {
	mem := memstore.New(memstore.Options{})
	w := &gateWorld{t: t, e: &paced{prefill: gate.Prefill{Token: 100e-6, Position: 30e-9}}, link: &slow{Store: mem}}
	w.writer, w.reader, w.always = gated(t, mem, w.e, gate.Auto), gated(t, w.link, w.e, gate.Auto), gated(t, w.link, w.e, gate.Always)
	w.cold = w.e.prefill.Seconds(0, gatedPrompt)
	return w
}

// even makes the link so slow that fetching all blocks takes so many times as long as computing them.
func (w *gateWorld) even(times float64) {
	w.link.set(300*time.Microsecond, gatedBlocks*float64(pacedLayout.BlockBytes())/(w.cold*times))
}

// fresh is a prompt that nobody has seen, stored is one that is in the remote tier, whole.
func (w *gateWorld) fresh() []int32 {
	w.seed++
	return text(w.seed, gatedPrompt)
}

func (w *gateWorld) stored() []int32 {
	tokens := w.fresh()
	complete(w.t, w.writer, worker.Request{Tokens: tokens})
	flush(w.t, w.writer)
	return tokens
}

// ask returns the time to first token, as a part of the time to compute everything. The output must be that of computing everything.
func (w *gateWorld) ask(r *worker.Replica, tokens []int32) (float64, worker.Result) {
	w.t.Helper()
	res := complete(w.t, r, worker.Request{Tokens: tokens, MaxTokens: 1})
	if want := int32(digest(tokens)[0]); len(res.Tokens) != 1 || res.Tokens[0] != want {
		w.t.Fatalf("output %v, without cache %d", res.Tokens, want)
	}
	return res.TTFT.Seconds() / w.cold, res
}

// However fast the link, the first token comes as soon as the better of loading and computing allows, and where they are alike, in
// little more than half of that.
func TestTheGateTakesTheFastestWay(t *testing.T) {
	for _, c := range []struct {
		link          float64 // time to fetch everything, as a part of the time to compute everything
		most          float64 // time to first token, as a part of the time to compute everything
		load, compute bool    // whether anything comes from there
	}{
		{0.05, 0.06, true, false}, {0.2, 0.2, true, true}, {0.5, 0.4, true, true}, {1, 0.55, true, true}, {2, 0.7, true, true},
		{4, 0.85, true, true}, {7, 0.92, true, true}, {40, 1.005, false, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newGateWorld(t)
			w.even(c.link)
			var ttft float64
			var res worker.Result
			for range 5 { // estimates settle
				ttft, res = w.ask(w.reader, w.stored())
			}
			if ttft > c.most {
				t.Errorf("link %v: first token after %.3f of computing everything, want at most %.3f", c.link, ttft, c.most)
			}
			if computed := res.ComputedTokens > 1; (res.RemoteTokens > 0) != c.load || computed != c.compute {
				t.Errorf("link %v: %d tokens loaded, %d computed", c.link, res.RemoteTokens, res.ComputedTokens)
			}
			if alone, _ := w.ask(w.always, w.stored()); c.link == 1 && ttft > 0.65*min(1, alone) {
				t.Errorf("loading alone takes %.3f, both %.3f", alone, ttft)
			}
		})
	}
}

// While blocks come in small groups, the next group is under way before the last has arrived: the link does not idle for round trips.
func TestTheLinkDoesNotIdleForRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t)
		w.even(1)
		w.link.set(10*time.Millisecond, w.link.rate)
		var ttft float64
		for range 5 {
			ttft, _ = w.ask(w.reader, w.stored())
		}
		// The question and the first group take a round trip each, and half of that is lost: both sides share the rest.
		if best := 0.5 + 10e-3/w.cold; ttft > best+0.01 {
			t.Errorf("first token after %.3f of computing everything, want little more than %.3f", ttft, best)
		}
	})
}

// A remote tier that has nothing, or that does not even say so, costs nothing once it is known.
func TestARemoteTierWithoutUseCostsNothing(t *testing.T) {
	for _, rtt := range []time.Duration{300 * time.Microsecond, 50 * time.Millisecond, 200 * time.Millisecond, time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w := newGateWorld(t)
			w.link.set(rtt, 0)
			first, _ := w.ask(w.reader, w.fresh())
			if most := 1 + 0.1/w.cold; first > most+0.001 { // nothing is known yet: one time-out of a probe
				t.Errorf("round trip %v: the first request took %.3f, want at most %.3f", rtt, first, most)
			}
			for range 20 {
				if ttft, _ := w.ask(w.reader, w.fresh()); ttft > 1.01 {
					t.Errorf("round trip %v: first token after %.3f of computing everything", rtt, ttft)
				}
			}
		})
	}
}

// A link that has become slow is noticed at once, and one that has become fast again soon.
func TestTheGateFollowsTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t)
		w.even(0.05)
		for range 3 {
			w.ask(w.reader, w.stored())
		}
		w.link.set(50*time.Millisecond, 1000) // a block takes seconds
		worst := 0.0
		for range 6 {
			ttft, _ := w.ask(w.reader, w.stored())
			worst = max(worst, ttft)
		}
		if worst > 1.2 {
			t.Errorf("while the link was slow, a first token took %.3f of computing everything", worst)
		}
		if ttft, res := w.ask(w.reader, w.stored()); ttft > 1.001 || res.Miss != tiered.MissGate {
			t.Errorf("the link was noticed: %.3f, miss %v; want 1 and gate", ttft, res.Miss)
		}
		w.even(0.05)
		start := time.Now()
		for ttft := 1.0; ttft > 0.1; ttft, _ = w.ask(w.reader, w.stored()) {
			time.Sleep(500 * time.Millisecond)
			if time.Since(start) > time.Minute {
				t.Fatalf("still at %.3f of computing everything a minute after the link was mended", ttft)
			}
		}
		t.Logf("mended after %v", time.Since(start))
	})
}

// Blocks that arrived from the back count only if they may still be used when everything before them is there.
func TestWhatArrivedEarlyIsNotUsedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t)
		w.even(1)
		for range 3 {
			w.ask(w.reader, w.stored())
		}
		tokens := w.stored()
		done := make(chan struct{})
		go func() {
			defer close(done)
			ttft, res := w.ask(w.reader, tokens)
			if res.RemoteTokens != 0 || res.Miss != tiered.MissEpoch || ttft < 0.99 {
				t.Errorf("%d tokens of an epoch that has ended were used, miss %v, %.3f", res.RemoteTokens, res.Miss, ttft)
			}
		}()
		time.Sleep(time.Duration(0.3 * w.cold * float64(time.Second))) // half of them are there
		v := w.reader.Cache().View()
		v.Epoch++
		w.reader.Cache().SetView(v)
		<-done
	})
}

func TestGateNeverReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t)
		r := gated(t, w.link, w.e, gate.Never)
		tokens := w.stored()
		if _, res := w.ask(r, tokens); res.RemoteTokens != 0 || res.Miss != tiered.MissGate {
			t.Errorf("%d tokens from the remote tier, miss %v", res.RemoteTokens, res.Miss)
		}
		if _, res := w.ask(r, tokens); res.HotTokens != gatedBlocks*16 {
			t.Errorf("%d tokens from the hot tier", res.HotTokens)
		}
	})
}

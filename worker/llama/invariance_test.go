package llama

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

// openRandom opens a random model that asks for helpers however little there is to do.
func openRandom(tb testing.TB, c llamatest.Config, opts Options) *Model {
	tb.Helper()
	file := llamatest.Random(c).Bytes()
	m, err := OpenReader(bytes.NewReader(file), int64(len(file)), "random", opts)
	if err != nil {
		tb.Fatal(err)
	}
	m.parallelFLOPs = 0
	return m
}

// outcome is everything that a sequence gives away: the last logits and the K/V of whole blocks.
type outcome struct {
	logits []uint32
	kv     [][]byte
}

func (o outcome) equal(p outcome) bool {
	return slices.Equal(o.logits, p.logits) && slices.EqualFunc(o.kv, p.kv, bytes.Equal)
}

func finish(s engine.Sequence, m *Model, logits []float32) (outcome, error) {
	var o outcome
	for _, v := range logits {
		o.logits = append(o.logits, math.Float32bits(v))
	}
	for pos := 0; pos+m.layout.BlockTokens <= s.Len(); pos += m.layout.BlockTokens {
		for i := range m.layout.PartCount() {
			kv := make([]byte, m.layout.PartBytes(m.layout.Part(i)))
			if err := s.Export(pos, m.layout.Part(i), kv); err != nil {
				return o, err
			}
			o.kv = append(o.kv, kv)
		}
	}
	return o, nil
}

// randomly computes tokens in random splits, importing random runs of blocks from want instead.
func randomly(rng *rand.Rand, m *Model, tokens []int32, want outcome) (outcome, error) {
	s, err := m.NewSequence()
	if err != nil {
		return outcome{}, err
	}
	defer s.Close()
	l := m.layout
	load := func(pos int) error {
		for i := range l.PartCount() {
			if err := s.Import(pos, l.Part(i), want.kv[pos/l.BlockTokens*l.PartCount()+i]); err != nil {
				return err
			}
		}
		return nil
	}
	blocks := (len(tokens) - 1) / l.BlockTokens
	for b := range blocks { // some blocks are there early, also behind holes
		if rng.IntN(4) == 0 {
			if err := load(b * l.BlockTokens); err != nil {
				return outcome{}, err
			}
		}
	}
	var logits []float32
	for s.Len() < len(tokens) {
		if b := s.Len() / l.BlockTokens; s.Len()%l.BlockTokens == 0 && b < blocks && rng.IntN(2) == 0 {
			n := 1 + rng.IntN(blocks-b)
			for i := range n {
				if err := load((b + i) * l.BlockTokens); err != nil {
					return outcome{}, err
				}
			}
			if err := s.Skip(n * l.BlockTokens); err != nil {
				return outcome{}, err
			}
			continue
		}
		n := 1 + rng.IntN([]int{1, 7, 40, 300}[rng.IntN(4)])
		if rng.IntN(2) == 0 { // end at a block's end, where an import can follow
			n = l.BlockTokens - s.Len()%l.BlockTokens
		}
		n = min(n, len(tokens)-s.Len())
		if logits, err = s.Prefill(context.Background(), tokens[s.Len():s.Len()+n]); err != nil {
			return outcome{}, err
		}
	}
	return finish(s, m, logits)
}

// Logits and K/V are the same to the bit for random splits, random imports, 1 to 3 threads, and sequences side by side.
func TestBatchInvariance(t *testing.T) {
	for _, c := range []llamatest.Config{
		{Heads: 4, KVHeads: 2, HeadDim: 16, FFN: 100},
		{Heads: 3, KVHeads: 1, HeadDim: 24, Layers: 1},
		{Heads: 2, KVHeads: 2, HeadDim: 64, Type: 1, Untied: true},
	} {
		c.Context = 700
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("heads=%d,%d/dim=%d", c.Heads, c.KVHeads, c.HeadDim), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			one := openRandom(t, c, Options{Threads: 1})
			for round := range 4 {
				tokens := make([]int32, 1+rng.IntN(c.Context))
				for i := range tokens {
					tokens[i] = rng.Int32N(int32(one.hparams.vocab))
				}
				s, _ := one.NewSequence()
				logits, err := s.Prefill(t.Context(), tokens)
				if err != nil {
					t.Fatal(err)
				}
				want, err := finish(s, one, logits)
				if err != nil {
					t.Fatal(err)
				}
				for threads := 1; threads <= 3; threads++ {
					m := openRandom(t, c, Options{Threads: threads})
					const side = 3
					var got [side]outcome
					var errs [side]error
					var wg sync.WaitGroup
					for i := range side {
						rng := rand.New(rand.NewPCG(seed, uint64(round*10+i)))
						wg.Go(func() { got[i], errs[i] = randomly(rng, m, tokens, want) })
					}
					wg.Wait()
					for i := range side {
						if errs[i] != nil {
							t.Fatalf("seed %d, round %d, threads %d: %v", seed, round, threads, errs[i])
						}
						if !got[i].equal(want) {
							t.Fatalf("seed %d, round %d, %d tokens, threads %d: other bits", seed, round, len(tokens), threads)
						}
					}
				}
			}
		})
	}
}

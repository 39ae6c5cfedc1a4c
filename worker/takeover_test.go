package worker_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

// metered is an engine that takes a millisecond a token, by the clock of the test.
type metered struct {
	engine.Engine
	computed int
}

type meteredSequence struct {
	engine.Sequence
	e *metered
}

func (p *metered) NewSequence() (engine.Sequence, error) {
	s, err := p.Engine.NewSequence()
	return &meteredSequence{s, p}, err
}

func (s *meteredSequence) Prefill(ctx context.Context, tokens []int32) ([]float32, error) {
	time.Sleep(time.Duration(len(tokens)) * time.Millisecond)
	s.e.computed += len(tokens)
	return s.Sequence.Prefill(ctx, tokens)
}

// Two workers are asked for the same prompt, the second when the first is nearly done. The second does not compute it all again, is
// faster than if it had, and says the same.
func TestSecondWorkerTakesOverWhatTheFirstComputes(t *testing.T) {
	prompt := make([]int32, 800)
	for i := range prompt {
		prompt[i] = int32(3 + i*i%900)
	}
	for _, x := range []struct {
		name        string
		after       time.Duration // the second request
		firstDies   bool
		least, most time.Duration // of the second
	}{
		{"far behind", 700 * time.Millisecond, false, 100 * time.Millisecond, 500 * time.Millisecond},
		{"half way", 450 * time.Millisecond, false, 300 * time.Millisecond, 700 * time.Millisecond},
		{"at once", 0, false, 800 * time.Millisecond, 810 * time.Millisecond},
		{"the first dies", 700 * time.Millisecond, true, 800 * time.Millisecond, 1000 * time.Millisecond},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				remote := memstore.New(memstore.Options{})
				newWorker := func() (*worker.Replica, *metered, func()) {
					e := &metered{Engine: open(t, v2, llama.Options{})}
					c, err := tiered.New(tiered.Options{Layout: e.Layout(), Remote: remote, FillLease: true})
					if err != nil {
						t.Fatal(err)
					}
					r, err := worker.NewReplica(worker.Options{Engine: e, Cache: c})
					if err != nil {
						t.Fatal(err)
					}
					complete(t, r, worker.Request{Tokens: prompt[400:656], NoCache: true, MaxTokens: 1}) // learns how fast it is
					e.computed = 0
					return r, e, func() {
						if err := r.Close(t.Context()); err != nil {
							t.Error(err)
						}
						c.Close(t.Context())
					}
				}
				first, _, closeFirst := newWorker()
				defer closeFirst()
				second, e, closeSecond := newWorker()
				defer closeSecond()
				ctx, kill := context.WithCancel(t.Context())
				defer kill()
				done := make(chan worker.Result)
				go func() {
					res, _ := first.Complete(ctx, worker.Request{Tokens: prompt, MaxTokens: 4})
					done <- res
				}()
				synctest.Wait()
				if x.firstDies {
					kill() // looked at between batches: what it has computed by then is lost
				}
				time.Sleep(x.after)
				start := time.Now()
				res := complete(t, second, worker.Request{Tokens: prompt, MaxTokens: 4})
				took := time.Since(start) - 3*time.Millisecond // of decoding
				want := <-done
				if !x.firstDies && !slices.Equal(res.Tokens, want.Tokens) {
					t.Errorf("other output: %v and %v", res.Tokens, want.Tokens)
				}
				if took < x.least || took > x.most {
					t.Errorf("took %v, want %v to %v; %d tokens computed, %+v", took, x.least, x.most, e.computed, res)
				}
				if sum := res.HotTokens + res.RemoteTokens + res.ComputedTokens; sum != len(prompt) {
					t.Errorf("%d hot, %d remote and %d computed tokens are not %d", res.HotTokens, res.RemoteTokens, res.ComputedTokens, len(prompt))
				}
			})
		})
	}
}

package worker_test

import (
	"context"
	"sync"
	"testing"

	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/workertest"
)

// watched is a real engine of which a test sees every call, and may hold it up or make it fail.
type watched struct {
	engine.Engine

	mu       sync.Mutex
	calls    []call
	open     int
	computed int
	// before is called before a sequence computes.
	before func(call) error
	// refuse makes Step fail.
	refuse error
}

// call is one computation: tokens of one sequence, or one token of several.
type call struct {
	seq    int // the first
	tokens int
	batch  int // sequences
	pos    int
}

type watchedSequence struct {
	engine.Sequence
	e  *watched
	id int
}

func (e *watched) NewSequence() (engine.Sequence, error) {
	s, err := e.Engine.NewSequence()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open++
	return &watchedSequence{s, e, e.open}, err
}

func (e *watched) note(c call) error {
	e.mu.Lock()
	e.calls = append(e.calls, c)
	e.computed += c.tokens * c.batch
	before := e.before
	e.mu.Unlock()
	if before != nil {
		return before(c)
	}
	return nil
}

func (e *watched) log() ([]call, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]call{}, e.calls...), e.computed
}

func (s *watchedSequence) Prefill(ctx context.Context, tokens []int32) ([]float32, error) {
	if err := s.e.note(call{s.id, len(tokens), 1, s.Len()}); err != nil {
		return nil, err
	}
	return s.Sequence.Prefill(ctx, tokens)
}

// batching is a watched engine that takes several sequences at once.
type batching struct{ *watched }

func (e batching) Step(ctx context.Context, seqs []engine.Sequence, tokens []int32) ([][]float32, error) {
	if e.refuse != nil {
		return nil, e.refuse
	}
	first := seqs[0].(*watchedSequence)
	if err := e.note(call{first.id, 1, len(seqs), first.Len()}); err != nil {
		return nil, err
	}
	out := make([][]float32, len(seqs))
	for i, s := range seqs {
		var err error
		if out[i], err = s.(*watchedSequence).Sequence.Prefill(ctx, tokens[i:i+1]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// generating is an engine whose sequences sample by themselves.
type generating struct{ engine.Engine }

type generator struct {
	engine.Sequence
	eos int32
}

func (e generating) NewSequence() (engine.Sequence, error) {
	s, err := e.Engine.NewSequence()
	return &generator{s, e.Tokenizer().EOS()}, err
}

func (g *generator) Generate(ctx context.Context, tokens []int32, o engine.GenerateOptions, emit func(engine.Generated) bool) error {
	logits, err := g.Prefill(ctx, tokens)
	if err != nil {
		return err
	}
	sampler := engine.NewSampler(o.SampleOptions)
	for i := range o.MaxTokens {
		next := sampler.Sample(logits)
		if next == g.eos && !o.IgnoreEOS {
			return nil
		}
		out := engine.Generated{Token: next}
		if o.TopLogprobs > 0 {
			out.Logprob, out.Top = -1, make([]engine.TokenLogprob, o.TopLogprobs)
		}
		if !emit(out) || i == o.MaxTokens-1 {
			return nil
		}
		if logits, err = g.Prefill(ctx, []int32{next}); err != nil {
			return err
		}
	}
	return nil
}

// replicaOf starts a worker on an engine, in front of no remote tier.
func replicaOf(t testing.TB, e engine.Engine, change func(*worker.Options)) *worker.Replica {
	t.Helper()
	o := worker.Options{Engine: e, Label: "test"}
	if change != nil {
		change(&o)
	}
	return workertest.Start(t, o, tiered.Options{HotBytes: 32 << 20})
}

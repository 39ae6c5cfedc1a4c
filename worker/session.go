package worker

import (
	"context"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// session is one request between engine and cache.
type session struct {
	cache  *tiered.Cache
	engine engine.Engine
	seq    engine.Sequence
	view   tiered.View
	chain  *block.Chain
	// compute brings tokens at seq.Len() onward into the sequence and returns the logits of the last; seq.Prefill, or what decides when that runs.
	compute func(ctx context.Context, tokens []int32) ([]float32, error)
	tokens  []int32      // prompt, then what was generated
	hashes  []block.Hash // chain of the full blocks of tokens
	kept    int          // blocks of the chain that need not be put any more
	scored  bool         // all of the prompt is computed, more slowly, since the logits behind each token are wanted

	gate    gate.Mode
	prefill *gate.PrefillMeter
}

// prompt brings the K/V of the whole prompt into the sequence, from the cache or by computing it, and returns the logits of its last token.
func (s *session) prompt(ctx context.Context, res *Result, noCache bool) ([]float32, error) {
	usable, err := s.resume(ctx, noCache)
	if err != nil {
		return nil, err
	}
	if !usable {
		res.Miss = tiered.MissUnshared
	} else if !noCache && !s.scored {
		if err := s.bring(ctx, res); err != nil {
			return nil, err
		}
	}
	res.ComputedTokens += len(s.tokens) - s.seq.Len()
	return s.computeTo(ctx, len(s.tokens))
}

// bring has the cache bring what it has of the prompt, and notes what came from where.
func (s *session) bring(ctx context.Context, res *Result) error {
	s.extend(len(s.tokens))
	bt := s.engine.Layout().BlockTokens
	held := s.seq.Len() / bt // the engine still had them
	_, whole := s.seq.(engine.Generator)
	out, err := s.cache.Bring(ctx, tiered.Lookup{
		View: s.view, Namespace: s.chain.Namespace(), Chain: s.reusable(), Held: held, Mode: s.gate, Prefill: s.prefill, Whole: whole,
	}, sink{s})
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	if held == 0 {
		s.kept = out.Hot / bt // they lie at the front; keep finds out about the others
	}
	res.HotTokens, res.RemoteTokens, res.ComputedTokens = held*bt+out.Hot, out.Remote, out.Computed
	res.Miss = out.Miss
	return nil
}

// sink is the session's sequence as the cache sees it.
type sink struct{ *session }

// Len implements tiered.Sink.
func (s sink) Len() int { return s.seq.Len() }

// Place implements tiered.Sink.
func (s sink) Place(pos int, p block.Part, kv []byte) error { return s.seq.Import(pos, p, kv) }

// Skip implements tiered.Sink.
func (s sink) Skip(n int) error { return s.seq.Skip(n) }

// Compute implements tiered.Sink.
func (s sink) Compute(ctx context.Context, to int) error {
	_, err := s.computeTo(ctx, to)
	return err
}

// computeTo computes the tokens before end that are not there yet, and notes how long that took.
func (s *session) computeTo(ctx context.Context, end int) ([]float32, error) {
	at, start := s.seq.Len(), s.cache.Now()
	logits, err := s.compute(ctx, s.tokens[at:end])
	if err == nil && logits != nil && !s.scored { // a Generator has put it off
		s.prefill.Observe(at, end-at, s.cache.Now().Sub(start))
	}
	return logits, err
}

// extend brings hashes up to the full blocks among the first n tokens.
func (s *session) extend(n int) {
	parent := s.chain.Root()
	if len(s.hashes) > 0 {
		parent = s.hashes[len(s.hashes)-1]
	}
	bt := s.engine.Layout().BlockTokens
	for at := len(s.hashes) * bt; at+bt <= n; at += bt {
		parent = s.chain.Next(parent, s.tokens[at:at+bt])
		s.hashes = append(s.hashes, parent)
	}
}

// reusable are the hashes of the blocks that need not be computed: never the one with the last token, whose logits are wanted.
func (s *session) reusable() []block.Hash {
	return s.hashes[:block.Reusable(len(s.tokens), s.engine.Layout().BlockTokens)]
}

// keep hands the blocks that have become full since the last call to the cache, which takes no notice of those it has.
func (s *session) keep() error {
	l := s.engine.Layout()
	s.extend(s.seq.Len())
	for ; s.kept < s.seq.Len()/l.BlockTokens; s.kept++ {
		pos := s.kept * l.BlockTokens
		err := s.cache.Put(s.view, s.chain.Namespace(), s.hashes[:s.kept+1], func(p block.Part, dst []byte) error {
			return s.seq.Export(pos, p, dst)
		})
		if err != nil {
			return fmt.Errorf("worker: export: %w", err)
		}
	}
	return nil
}

package worker

import (
	"context"
	"fmt"

	"github.com/kvtier/kvtier/block"
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
	resumed int          // blocks at the front that the engine still held
	kept    int          // blocks of the chain that need not be put any more

	gate    tiered.Gate
	prefill *tiered.PrefillMeter
}

// prompt brings the K/V of the whole prompt into the sequence, from the cache or by computing it, and returns the logits of its last token.
func (s *session) prompt(ctx context.Context, res *Result, noCache bool) ([]float32, error) {
	usable, err := s.resume(ctx, noCache)
	if err != nil {
		return nil, err
	}
	if !usable {
		res.Miss = tiered.MissUnshared
	} else if !noCache {
		s.extend(len(s.tokens))
		s.resumed = s.seq.Len() / s.engine.Layout().BlockTokens
		get := s.loadOrCompute
		if _, ok := s.seq.(engine.Generator); ok || s.gate != tiered.GateAuto { // a Generator computes in one piece
			get = s.reuse
		}
		if err := get(ctx, res); err != nil {
			return nil, err
		}
		if err := s.lookOut(ctx, res); err != nil {
			return nil, err
		}
	}
	res.ComputedTokens += len(s.tokens) - s.seq.Len()
	return s.computeTo(ctx, len(s.tokens))
}

// computeTo computes the tokens before end that are not there yet, and notes how long that took.
func (s *session) computeTo(ctx context.Context, end int) ([]float32, error) {
	at, start := s.seq.Len(), s.cache.Now()
	logits, err := s.compute(ctx, s.tokens[at:end])
	if err == nil && logits != nil { // a Generator has put it off
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

// reusable are the hashes of the blocks that need not be computed, of which the engine still holds the first resumed: never the one with the
// last token, whose logits are wanted.
func (s *session) reusable() []block.Hash {
	return s.hashes[:block.Reusable(len(s.tokens), s.engine.Layout().BlockTokens)]
}

// reuse imports the longest cached run at the front of the prompt and waits for it.
func (s *session) reuse(ctx context.Context, res *Result) error {
	var f *tiered.Fetch
	if s.gate == tiered.GateNever {
		f = s.cache.FetchHot(s.view, s.chain.Namespace(), s.reusable(), s.resumed)
	} else {
		f = s.cache.FetchFrom(ctx, s.view, s.chain.Namespace(), s.reusable(), s.resumed)
	}
	defer f.Close()
	if err := s.walk(ctx, f); err != nil {
		return err
	}
	s.settle(f, res)
	return nil
}

// walk imports the blocks that f hands out.
func (s *session) walk(ctx context.Context, f *tiered.Fetch) error {
	l := s.engine.Layout()
	for f.Next(ctx) {
		if err := s.place(s.seq.Len(), f.Part); err != nil {
			return err
		}
		// Only now does the block count: whatever stopped this process since Next asked, the grant is still there.
		if !f.Current() {
			f.Lose()
			break
		}
		if err := s.seq.Skip(l.BlockTokens); err != nil {
			return fmt.Errorf("worker: import: %w", err)
		}
	}
	if s.resumed == 0 {
		s.kept = s.seq.Len() / l.BlockTokens
	}
	return nil
}

// place imports one block at pos.
func (s *session) place(pos int, part func(int) []byte) error {
	l := s.engine.Layout()
	for p := range l.PartCount() {
		if err := s.seq.Import(pos, l.Part(p), part(p)); err != nil {
			return fmt.Errorf("worker: import: %w", err)
		}
	}
	return nil
}

// settle notes what the cache has contributed.
func (s *session) settle(f *tiered.Fetch, res *Result) {
	bt := s.engine.Layout().BlockTokens
	res.HotTokens = (s.resumed + f.Blocks(tiered.Hot)) * bt
	res.RemoteTokens = f.Blocks(tiered.Remote) * bt
	res.Miss = f.Miss()
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

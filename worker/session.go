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
	kept    int          // blocks of the chain that need not be put any more
}

// prompt brings the K/V of the whole prompt into the sequence, from the cache or by computing it, and returns the logits of its last token.
func (s *session) prompt(ctx context.Context, res *Result, noCache bool) ([]float32, error) {
	if err := s.resume(ctx, noCache); err != nil {
		return nil, err
	}
	if !noCache {
		if err := s.reuse(ctx, res); err != nil {
			return nil, err
		}
	}
	missing := s.tokens[s.seq.Len():]
	res.ComputedTokens = len(missing)
	return s.compute(ctx, missing)
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

// reuse imports the longest cached run at the front of the prompt, but never its last token.
func (s *session) reuse(ctx context.Context, res *Result) error {
	l := s.engine.Layout()
	s.extend(len(s.tokens))
	resumed := s.seq.Len() / l.BlockTokens
	f := s.cache.Fetch(ctx, s.view, s.chain.Namespace(), s.hashes[resumed:block.Reusable(len(s.tokens), l.BlockTokens)])
	defer f.Close()
	for f.Next(ctx) {
		for p := range l.PartCount() {
			if err := s.seq.Import(s.seq.Len(), l.Part(p), f.Part(p)); err != nil {
				return fmt.Errorf("worker: import: %w", err)
			}
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
	if resumed == 0 {
		s.kept = s.seq.Len() / l.BlockTokens
	}
	res.HotTokens = (resumed + f.Blocks(tiered.Hot)) * l.BlockTokens
	res.RemoteTokens = f.Blocks(tiered.Remote) * l.BlockTokens
	res.Miss = f.Miss()
	return nil
}

// keep hands the blocks that have become full since the last call to the cache.
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

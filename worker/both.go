package worker

import (
	"context"
	"fmt"

	"github.com/kvtier/kvtier/tiered"
)

// chunkTokens is how much is computed before the request looks again at what has arrived: as many tokens as engines like to take at once.
const chunkTokens = 128

// leastTokens is how few tokens are worth a call to the engine when blocks are about to arrive in their place.
const leastTokens = 32

// loadOrCompute imports what the hot tier has, and of what only the remote tier has as much as pays. The engine is never idle for longer than
// waiting is estimated to be worth: it computes from the front while the remote tier is asked, and while blocks arrive from the
// back. All but the tokens that no tier has is there afterwards.
func (s *session) loadOrCompute(ctx context.Context, res *Result) error {
	f := s.cache.FetchHot(s.view, s.chain.Namespace(), s.reusable(), s.resumed)
	defer f.Close()
	err := s.walk(ctx, f)
	hot := s.seq.Len()
	if b := f.Back(); b != nil && err == nil {
		if err = s.meet(ctx, b); err == nil {
			res.ComputedTokens = s.seq.Len() - hot - f.Blocks(tiered.Remote)*s.engine.Layout().BlockTokens
		}
	}
	s.settle(f, res)
	return err
}

// at is where a block begins of which the cache was asked as the n-th.
func (s *session) at(n int) int { return (s.resumed + n) * s.engine.Layout().BlockTokens }

// work is what is left to get of the first so many blocks.
func (s *session) work(blocks int) tiered.Work {
	l := s.engine.Layout()
	return tiered.Work{At: s.seq.Len(), End: s.at(blocks), Block: l.BlockTokens, TokenBytes: float64(l.BlockBytes()) / float64(l.BlockTokens)}
}

// meet brings the blocks that the remote tier has into the sequence, by loading them from the back and computing from the front.
func (s *session) meet(ctx context.Context, b *tiered.Back) error {
	all, _ := b.Blocks()
	ask, wait := tiered.Ask(b.Path(), s.prefill.Estimate(), s.work(all), s.cache.ProbeTimeout())
	if !ask {
		b.Pass()
		return nil
	}
	b.Ask()
	for !b.Answered(ctx, wait) {
		if s.seq.Len() >= s.at(all) {
			return nil // everything has been computed meanwhile
		}
		if err := s.chunk(ctx, b, s.at(all)); err != nil {
			return err
		}
		wait = 0
	}
	plan := tiered.Decide(b.Path(), s.prefill.Estimate(), s.work(b.End()))
	if plan.Choice == tiered.ChooseCompute {
		b.Pass()
		return nil
	}
	b.Begin(plan)
	if err := s.approach(ctx, b); err != nil {
		return err
	}
	return s.join(ctx, b)
}

// approach places blocks as they arrive and computes meanwhile, until nothing is left between the two.
func (s *session) approach(ctx context.Context, b *tiered.Back) error {
	for s.seq.Len() < s.at(b.Low()) && !b.Over() {
		if b.Next(ctx, 0) {
			if err := s.place(s.at(b.Low()), b.Part); err != nil {
				return err
			}
			continue
		}
		w := s.work(b.Low())
		plan := tiered.Decide(b.Path(), s.prefill.Estimate(), w)
		if b.Late() {
			plan.Meet = w.End
		} else if plan.Meet-w.At < min(leastTokens, w.End-w.At) {
			// Too few tokens for a call to the engine will have to be computed: wait, and decide anew.
			if b.Next(ctx, plan.Patience()) {
				if err := s.place(s.at(b.Low()), b.Part); err != nil {
					return err
				}
			}
			continue
		}
		if err := s.chunk(ctx, b, plan.Meet); err != nil {
			return err
		}
	}
	return nil
}

// chunk computes the next tokens, up to most; blocks that it covers need not arrive any more.
func (s *session) chunk(ctx context.Context, b *tiered.Back, most int) error {
	bt := s.engine.Layout().BlockTokens
	end := min(s.seq.Len()+max(bt, chunkTokens/bt*bt), most)
	b.Until(end/bt - s.resumed)
	_, err := s.computeTo(ctx, end)
	return err
}

// join computes what is left before the blocks that have arrived and passes over those, if they may still be used.
func (s *session) join(ctx context.Context, b *tiered.Back) error {
	low := s.at(b.Low())
	b.Until(b.Low())
	if b.Low() == b.End() {
		return nil
	}
	if s.seq.Len() < low {
		if _, err := s.computeTo(ctx, low); err != nil {
			return err
		}
	}
	if !b.Take() {
		return nil
	}
	if err := s.seq.Skip(s.at(b.End()) - s.seq.Len()); err != nil {
		return fmt.Errorf("worker: import: %w", err)
	}
	return nil
}

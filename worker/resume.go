package worker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// resume lets an engine that keeps K/V of ended sequences go on from one that began with this prompt, and reports whether it can use
// K/V from the cache.
func (s *session) resume(ctx context.Context, noCache bool) (usable bool, err error) {
	r, ok := s.seq.(engine.Resumer)
	if !ok {
		return true, nil
	}
	stored, err := r.Resume(ctx, s.tokens, func() string {
		if noCache {
			return ""
		}
		return s.scope()
	})
	if err != nil {
		return false, fmt.Errorf("worker: %w", err)
	}
	s.kept = max(0, stored) / s.engine.Layout().BlockTokens
	return stored >= 0, nil
}

// resumeAlone begins a sequence of its own, which shares K/V with no other, for those who move K/V by hand.
func resumeAlone(ctx context.Context, seq engine.Sequence, tokens []int32) error {
	r, ok := seq.(engine.Resumer)
	if !ok {
		return nil
	}
	stored, err := r.Resume(ctx, tokens, rand.Text)
	if err == nil && stored < 0 {
		err = errors.New("the engine cannot exchange K/V at the moment: /readyz says why")
	}
	return err
}

// scope names what an engine's own K/V may be used together, as the cache would decide it for a block at this moment: the chain's root
// stands for weights, layout, tenant and purges of the tenant, epoch and activation for purges of everything. It is empty where
// nothing may be reused.
func (s *session) scope() string {
	now, ns := s.cache.View(), s.chain.Namespace()
	if now.Generation != s.view.Generation || now.Cuts[ns] != s.view.Cuts[ns] || min(now.Access, s.view.Access) == tiered.AccessNone {
		return ""
	}
	return fmt.Sprintf("%v %d %s", s.chain.Root(), s.view.Epoch, hex.EncodeToString(s.view.Act[:]))
}

package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// fillChunk is how much is computed before a request looks whether another worker's blocks have come.
const fillChunk = 128

// lookOut computes the blocks that no tier has, unless another worker is about to have them: then it takes over what comes of that, and computes
// meanwhile. It returns without having done anything when there is nobody to wait for.
func (s *session) lookOut(ctx context.Context, res *Result) error {
	bt, end := s.engine.Layout().BlockTokens, len(s.reusable())
	first, pre := s.seq.Len()/bt, s.prefill.Estimate()
	if _, ok := s.seq.(engine.Generator); ok || !res.Miss.Absent() || s.seq.Len()%bt != 0 || first >= end || !pre.Known() {
		return nil
	}
	work, path := s.work(end-s.resumed), s.cache.Path()
	toCompute := func() time.Duration { return duration(pre.Seconds(s.seq.Len(), end*bt-s.seq.Len())) }
	w := s.cache.WatchFill(ctx, s.view, s.hashes[first:end], tiered.Fill{
		Compute: toCompute(), Load: duration(path.Seconds(work.TokenBytes * float64(work.End-work.At))), RTT: duration(path.RTT),
	})
	if w == nil {
		return nil
	}
	defer w.Close()
	w.Idle(ctx)
	for s.seq.Len() < end*bt {
		if there := first + w.Found(); there*bt-s.seq.Len() >= leastTokens || there == end {
			had := s.seq.Len()
			if err := s.takeOver(ctx, res, there, toCompute()); err != nil {
				return err
			}
			if s.seq.Len() > had {
				continue
			}
			return nil // it was there and cannot be had: compute
		}
		if w.Over() {
			return nil
		}
		n := min(fillChunk/bt*bt+bt, end*bt-s.seq.Len())
		if _, err := s.computeTo(ctx, s.seq.Len()+n); err != nil {
			return err
		}
		res.ComputedTokens += n
	}
	return nil
}

// takeOver imports what has come up to the given block, for which it waits no longer than it would compute.
func (s *session) takeOver(ctx context.Context, res *Result, blocks int, most time.Duration) error {
	if err := s.keep(); err != nil { // so that what was computed here is not fetched
		return err
	}
	l := s.engine.Layout()
	waiting, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	f := s.cache.Fetch(waiting, s.view, s.chain.Namespace(), s.hashes[:blocks])
	defer f.Close()
	for pos := 0; f.Next(waiting); pos += l.BlockTokens {
		if pos < s.seq.Len() {
			continue
		}
		if err := s.place(pos, f.Part); err != nil {
			return err
		}
		if !f.Current() {
			f.Lose()
			break
		}
		if err := s.seq.Skip(l.BlockTokens); err != nil {
			return fmt.Errorf("worker: import: %w", err)
		}
		if f.Tier() == tiered.Hot {
			res.HotTokens += l.BlockTokens
		} else {
			res.RemoteTokens += l.BlockTokens
		}
	}
	return nil
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

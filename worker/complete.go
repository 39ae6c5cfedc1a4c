package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/worker/engine"
)

// Complete answers req. It fails with a *RequestError (ErrRequest) for a request that can never succeed, with a *BusyError (ErrBusy) when too many
// wait already, with ctx's error, or with ErrClosed; never because of the cache. The Result of a request that failed on the way says
// how far it came.
func (r *Replica) Complete(ctx context.Context, req Request) (Result, error) {
	return r.Stream(ctx, req, nil)
}

// Stream is Complete that hands out the continuation as it comes to be. emit is called from several goroutines, one call at a time, and not after
// Stream has returned. It must not block: other requests may wait for the same computation.
func (r *Replica) Stream(ctx context.Context, req Request, emit func(Event)) (Result, error) {
	start := time.Now()
	a, err := r.admit(ctx, &req)
	if err != nil {
		return Result{}, err
	}
	defer a.leave()
	a.start, a.emit = start, emit
	a.res.Waited = time.Since(start)
	err = a.run(ctx)
	a.res.Total = time.Since(start)
	return a.res, err
}

// admit waits until req may run. Then the latch keeps the engine resident until the answer leaves.
func (r *Replica) admit(ctx context.Context, req *Request) (*answer, error) {
	for {
		e, _ := r.Resident()
		if req.only != nil && e != req.only {
			return nil, errExchanged
		}
		tokens, most, err := req.tokens(ctx, e, r.opts.MaxSequences)
		if now, _ := r.Resident(); err != nil && now == e {
			return nil, err
		}
		need := sequenceBytes(e, len(tokens)+most) * int64(req.choices())
		enter := r.queue.enter
		if req.follows {
			enter = r.queue.follow
		}
		place, err := enter(ctx, req.Priority, req.choices(), need)
		if err != nil {
			return nil, fmt.Errorf("worker: waiting for a turn: %w", err)
		}
		a := &answer{replica: r, req: req, place: place, latch: r.latch}
		if err := a.latch.Acquire(ctx, 1); err != nil {
			place.leave()
			return nil, fmt.Errorf("worker: waiting for a turn: %w", err)
		}
		r.mu.Lock()
		closed := r.mu.closed
		a.engine, a.res.Label = r.mu.engine, r.mu.label
		r.mu.Unlock()
		if closed {
			a.leave()
			return nil, ErrClosed
		}
		if req.only != nil && a.engine != req.only {
			a.leave()
			return nil, errExchanged
		}
		if a.engine != e { // swapped while it waited: another tokenizer, perhaps
			if tokens, most, err = req.tokens(ctx, a.engine, r.opts.MaxSequences); err != nil {
				a.leave()
				return nil, err
			}
			if sequenceBytes(a.engine, len(tokens)+most)*int64(req.choices()) > need {
				a.leave()
				continue
			}
		}
		place.begin()
		a.prompt, a.most = tokens, most
		a.res.PromptTokens, a.res.Identity = len(tokens), a.engine.Identity()
		return a, nil
	}
}

// sequenceBytes is the memory of a sequence of that many tokens.
func sequenceBytes(e engine.Engine, tokens int) int64 {
	if s, ok := e.(engine.Sized); ok {
		return s.SequenceBytes(tokens)
	}
	return int64(tokens) * int64(e.Layout().TokenBytes())
}

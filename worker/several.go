package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kvtier/kvtier/worker/engine"
)

// MaxPrompts bounds how many prompts one request may have.
const MaxPrompts = 256

// errExchanged means that the weights were exchanged between the prompts of one request.
var errExchanged = errors.New("worker: the weights were exchanged while the request ran: ask again")

// StreamAll answers several requests of one N as one: their choices are counted through, in order, and one set of weights answers all of them. Each
// has turns of its own. It fails with the first error, before anything is computed where the requests show it; see Stream for the rest.
func (r *Replica) StreamAll(ctx context.Context, reqs []Request, emit func(Event)) (Result, error) {
	switch {
	case len(reqs) == 1:
		return r.Stream(ctx, reqs[0], emit)
	case len(reqs) == 0 || len(reqs) > MaxPrompts:
		return Result{}, badRequest("invalid_value", "prompt", "prompt has %d prompts, want 1 to %d", len(reqs), MaxPrompts)
	}
	start := time.Now()
	for {
		told := false
		res, err := r.streamAll(ctx, reqs, func(e Event) {
			if told = true; emit != nil {
				emit(e)
			}
		})
		if !errors.Is(err, errExchanged) || told && emit != nil {
			res.Total = time.Since(start)
			return res, err
		}
	}
}

// streamAll is StreamAll with whichever weights are resident now, or errExchanged.
func (r *Replica) streamAll(ctx context.Context, reqs []Request, emit func(Event)) (Result, error) {
	e, _ := r.Resident()
	parts, err := r.parts(ctx, reqs, e)
	if err != nil {
		return Result{}, err
	}
	if err := r.queue.room(parts[0].Priority, parts[0].choices()); err != nil {
		return Result{}, fmt.Errorf("worker: waiting for a turn: %w", err)
	}
	var mu sync.Mutex // around emit
	results := make([]Result, len(parts))
	side, ctx := errgroup.WithContext(ctx)
	side.SetLimit(max(1, r.opts.MaxSequences/parts[0].choices()))
	for i, q := range parts {
		side.Go(func() (err error) {
			if err := ctx.Err(); err != nil {
				return err
			}
			results[i], err = r.Stream(ctx, q, func(e Event) {
				e.Choice += i * q.choices()
				mu.Lock()
				defer mu.Unlock()
				emit(e)
			})
			return err
		})
	}
	err = side.Wait()
	return asOne(results), err
}

// parts checks all requests against an engine, which alone may answer them.
func (r *Replica) parts(ctx context.Context, reqs []Request, e engine.Engine) ([]Request, error) {
	parts := make([]Request, len(reqs))
	for i, q := range reqs {
		tokens, _, err := q.tokens(ctx, e, r.opts.MaxSequences)
		if bad, ok := errors.AsType[*RequestError](err); ok {
			return nil, badRequest(bad.Code, bad.Param, "prompt %d of %d: %s", i, len(reqs), bad.Message)
		} else if err != nil {
			return nil, err
		}
		q.Prompt, q.Tokens, q.only, q.follows = "", tokens, e, true
		parts[i] = q
	}
	return parts, nil
}

// asOne is what one request with the prompts of all results came to. Times are those of the first, and so is Miss unless a later one says that
// the cache was not as it should be.
func asOne(results []Result) Result {
	all := results[0]
	all.Others = append([]Choice{}, all.Others...)
	for _, res := range results[1:] {
		all.Others = append(all.Others, res.all()...)
		all.Source.add(res.Source)
		if res.Miss.Degraded() && !all.Miss.Degraded() {
			all.Miss = res.Miss
		}
	}
	return all
}

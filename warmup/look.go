package warmup

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Looker knows what is stored of a prompt's blocks: Look counts their tokens from the front. It is safe for concurrent use.
type Looker interface {
	Look(ctx context.Context, req Request) (tokens int, err error)
}

// looksPerWorker is how many prompts a worker is asked about at once.
const looksPerWorker = 2

// Present counts those of the plan's UniqueBlocks that are stored already. Every prompt is looked up, by one of the lookers.
func (p *Plan) Present(ctx context.Context, lookers []Looker) (int64, error) {
	var present atomic.Int64
	looks, ctx := errgroup.WithContext(ctx)
	looks.SetLimit(looksPerWorker * len(lookers))
	turn := 0
	err := func() error {
		for _, g := range p.groups {
			for r, err := range p.records(g) {
				if err != nil || ctx.Err() != nil {
					return err
				}
				if r.shared == r.blocks {
					continue // all of it belongs to the prompt before
				}
				l := lookers[turn%len(lookers)]
				turn++
				looks.Go(func() error {
					req, err := p.request(ctx, &Task{To: r.blocks, Final: true, rec: r})
					if err != nil {
						return err
					}
					tokens, err := l.Look(ctx, req)
					// What it shares with the prompt before it in the plan is counted there.
					present.Add(int64(max(0, tokens/p.BlockTokens-r.shared)))
					return err
				})
			}
		}
		return nil
	}()
	if e := looks.Wait(); e != nil {
		err = e
	}
	return present.Load(), err
}

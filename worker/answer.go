package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// answer is a request at work: it has its turn, and its engine stays resident.
type answer struct {
	replica *Replica
	engine  engine.Engine
	req     *Request
	place   *ticket
	latch   *semaphore.Weighted // held with weight 1
	prompt  []int32
	most    int // tokens to generate
	start   time.Time
	flight  *flight         // of the prompt's blocks; nil without the cache
	scores  []TokenLogprobs // of the prompt's tokens, with req.PromptLogprobs

	mu   sync.Mutex // held while emit runs, and for res.TTFT
	emit func(Event)
	res  Result
}

// leave gives back what admit took.
func (a *answer) leave() {
	a.latch.Release(1)
	a.place.leave()
}

// run computes the prompt once, then all choices side by side.
func (a *answer) run(ctx context.Context) error {
	choices := make([]*choice, a.req.choices())
	defer func() {
		a.land()
		for _, c := range choices {
			c.close()
		}
	}()
	first, err := a.begin(ctx)
	if err != nil {
		return err
	}
	choices[0] = first
	logits, err := first.s.prompt(ctx, &a.res, a.req.NoCache)
	if err != nil {
		return err
	}
	others, otherCtx := errgroup.WithContext(ctx)
	err = first.generate(otherCtx, logits, func() error { // before decoding: others can use the prompt's blocks while this one still generates
		if err := first.keep(); err != nil {
			return err
		}
		a.land()
		for i := 1; i < len(choices); i++ {
			c, err := a.fork(first, i)
			if err != nil {
				return err
			}
			choices[i] = c
			others.Go(func() error { return c.continuePrompt(otherCtx) })
		}
		return nil
	})
	if err != nil {
		others.Go(func() error { return err }) // ends the others
	}
	err = others.Wait()
	for _, c := range choices {
		if c != nil {
			c.out.Prompt = a.scores
		}
	}
	a.res.Choice = first.out
	for _, c := range choices[1:] {
		if c != nil {
			a.res.Others = append(a.res.Others, c.out)
		}
	}
	return err
}

// begin opens the first choice's sequence and waits for what others compute of its prompt already.
func (a *answer) begin(ctx context.Context) (*choice, error) {
	c, err := a.open(0)
	if err != nil {
		return nil, err
	}
	s, cache := c.s, a.replica.opts.Cache
	s.cache, s.chain = cache, a.chain()
	look := func() (hashes []block.Hash, hot int) {
		s.view, s.hashes = cache.View(), nil
		s.chain.After(s.view.Cuts[s.chain.Namespace()])
		if s.view.Access == tiered.AccessNone {
			return nil, 0 // nothing that is computed becomes hot
		}
		s.extend(len(a.prompt))
		return s.hashes, cache.HotBlocks(s.view, s.hashes)
	}
	if a.req.NoCache || a.req.PromptLogprobs || a.replica.flights == nil {
		look()
	} else {
		a.flight = a.replica.flights.join(ctx, a.req.Priority, block.Reusable(len(a.prompt), a.engine.Layout().BlockTokens), look)
	}
	a.res.Epoch = s.view.Epoch
	return c, nil
}

// open starts the i-th choice on an empty sequence.
func (a *answer) open(i int) (*choice, error) {
	seq, err := a.engine.NewSequence()
	if err != nil {
		return nil, err
	}
	if _, ok := seq.(engine.Generator); ok && a.req.MinTokens > 0 && !a.req.IgnoreEOS && a.req.MinTokens < a.most {
		return nil, errors.Join(badRequest("unsupported_parameter", "min_tokens", "min_tokens is not supported by this worker's engine, unless it equals max_tokens or ignore_eos is true"), seq.Close())
	}
	c := &choice{answer: a, index: i, closed: a.replica.schedule.opened()}
	c.s = &session{
		engine: a.engine, seq: seq, tokens: slices.Clip(a.prompt), compute: c.compute,
		gate: a.replica.opts.Gate, prefill: &a.replica.prefill[a.req.Priority], scored: a.req.PromptLogprobs,
	}
	return c, nil
}

// fork starts another choice with the K/V of the prompt's full blocks, copied from the first one. The rest of the prompt is its own to compute.
func (a *answer) fork(from *choice, i int) (*choice, error) {
	c, err := a.open(i)
	if err != nil {
		return nil, err
	}
	s, l := c.s, a.engine.Layout()
	s.cache, s.view, s.hashes = from.s.cache, from.s.view, slices.Clone(from.s.hashes)
	s.chain = a.chain()
	s.chain.After(s.view.Cuts[s.chain.Namespace()])
	if _, ok := s.seq.(engine.Generator); ok {
		return c, nil // it may not be able to export; continuePrompt asks the cache
	}
	var buf []byte
	for range block.Reusable(len(a.prompt), l.BlockTokens) {
		pos := s.seq.Len()
		for p := range l.PartCount() {
			part := l.Part(p)
			buf = slices.Grow(buf[:0], l.PartBytes(part))[:l.PartBytes(part)]
			if err := errors.Join(from.s.seq.Export(pos, part, buf), s.seq.Import(pos, part, buf)); err != nil {
				return nil, errors.Join(err, c.close())
			}
		}
		if err := s.seq.Skip(l.BlockTokens); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	s.kept = len(a.prompt) / l.BlockTokens // the first choice keeps the prompt's
	return c, nil
}

func (a *answer) chain() *block.Chain {
	return block.NewChain(a.replica.opts.Secret, a.engine.Identity(), a.req.Salt, a.engine.Layout().BlockTokens)
}

// land lets those go on who wait for the prompt's blocks.
func (a *answer) land() {
	if a.flight != nil {
		a.flight.land()
	}
}

// firstToken notes when the first token of any choice was there.
func (a *answer) firstToken() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.res.TTFT == 0 {
		a.res.TTFT = time.Since(a.start)
	}
}

func (a *answer) tell(e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.emit != nil {
		e.Source = a.res.Source // known before anything is generated
		a.emit(e)
	}
}

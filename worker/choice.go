package worker

import (
	"context"
	"math"

	"github.com/kvtier/kvtier/worker/engine"
)

// choice is one continuation in the making.
type choice struct {
	answer *answer
	index  int
	s      *session
	rest   []int32 // of the prompt, left to an engine.Generator
	text   textBuilder
	told   int       // tokens of out that were part of an event
	begun  bool      // there was an event
	masked []float32 // scratch: see allowed
	out    Choice
	probs  []TokenLogprobs // of the tokens that were not told yet
	closed func()
}

// close releases the sequence. It may be called on nil.
func (c *choice) close() error {
	if c == nil {
		return nil
	}
	c.closed()
	return c.s.seq.Close()
}

// compute is session.compute: chunk by chunk, so that others get their turns in between. A Generator computes the prompt's end by itself.
func (c *choice) compute(ctx context.Context, tokens []int32) (logits []float32, err error) {
	a := c.answer
	if g, ok := c.s.seq.(engine.Generator); ok {
		if c.s.seq.Len()+len(tokens) == len(c.s.tokens) {
			c.rest = tokens
			return nil, nil
		}
		return nil, g.Generate(ctx, tokens, engine.GenerateOptions{}, func(engine.Generated) bool { return false })
	}
	for len(tokens) > 0 {
		n := min(len(tokens), a.replica.opts.PrefillChunk)
		if err := c.progress(); err != nil {
			return nil, err
		}
		if err := c.yield(ctx); err != nil {
			return nil, err
		}
		w := work{ctx: ctx, engine: a.engine, seq: c.s.seq, tokens: tokens[:n]}
		if at := c.s.seq.Len(); a.req.PromptLogprobs && c.index == 0 {
			w.visit = func(i int, logits []float32) { a.score(at+i+1, logits) }
		}
		if logits, err = a.replica.schedule.do(w, false); err != nil {
			return nil, err
		}
		tokens = tokens[n:]
	}
	return logits, nil
}

// progress is called between chunks: blocks that somebody waits for become hot now.
func (c *choice) progress() error {
	f := c.answer.flight
	if f == nil || c.index > 0 || f.wanted.Load() == 0 {
		return nil
	}
	if err := c.keep(); err != nil {
		return err
	}
	f.advance(c.s.kept)
	return nil
}

// yield lets a Background request wait while Serving ones have a turn, unless one of them waits for its blocks.
func (c *choice) yield(ctx context.Context) error {
	if c.answer.req.Priority != Background {
		return nil
	}
	var hurry chan struct{}
	f := c.answer.flight
	if f != nil {
		hurry = f.hurry
	}
	for f == nil || f.urgent.Load() == 0 {
		quiet := c.answer.replica.queue.quiet()
		if quiet == nil {
			return nil
		}
		select {
		case <-quiet:
		case <-hurry:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// generate produces tokens after logits, until the choice is finished, and hands full blocks to the cache. then, if not nil, is called once, behind
// the first token; with an engine.Generator, which cannot be interrupted, behind the last.
func (c *choice) generate(ctx context.Context, logits []float32, then func() error) error {
	if g, ok := c.s.seq.(engine.Generator); ok {
		if err := c.delegate(ctx, g); err != nil {
			return err
		}
		if then != nil {
			if err := then(); err != nil {
				return err
			}
		}
		return c.keep()
	}
	defer c.answer.replica.schedule.decodes()()
	req := c.answer.req
	sampler := engine.NewSampler(c.sampling())
	for {
		next := sampler.Sample(c.allowed(logits))
		finished := c.first(next)
		if !finished {
			var p TokenLogprobs
			if req.Logprobs {
				p.Logprob, p.Top = logprobs(logits, next, req.TopLogprobs)
			}
			finished = c.accept(next, p)
		}
		if then != nil {
			if err := then(); err != nil {
				return err
			}
			then = nil
		}
		if finished {
			return c.keep() // generated tokens too: the next turn of a conversation hits them
		}
		if err := c.yield(ctx); err != nil {
			return err
		}
		var err error
		if logits, err = c.answer.replica.schedule.do(work{ctx: ctx, engine: c.answer.engine, seq: c.s.seq, tokens: c.s.tokens[len(c.s.tokens)-1:]}, true); err != nil {
			return err
		}
	}
}

// allowed are the logits that a token may be drawn by: without that of the end of text as long as there must be more.
func (c *choice) allowed(logits []float32) []float32 {
	eos, req := c.answer.engine.Tokenizer().EOS(), c.answer.req
	if len(c.out.Tokens) >= req.MinTokens || req.IgnoreEOS || eos < 0 || int(eos) >= len(logits) {
		return logits
	}
	c.masked = append(c.masked[:0], logits...)
	c.masked[eos] = float32(math.Inf(-1))
	return c.masked
}

// first notes that a token is there, and reports whether none is wanted or it ends the text.
func (c *choice) first(next int32) (finished bool) {
	c.answer.firstToken()
	switch {
	case c.answer.most == 0:
		c.finish("", 0, "length")
	case next == c.answer.engine.Tokenizer().EOS() && !c.answer.req.IgnoreEOS:
		c.finish("", 0, "stop")
	default:
		return false
	}
	return true
}

// delegate has the engine generate by itself.
func (c *choice) delegate(ctx context.Context, g engine.Generator) error {
	req := c.answer.req
	o := engine.GenerateOptions{SampleOptions: c.sampling(), MaxTokens: c.answer.most, IgnoreEOS: req.IgnoreEOS || req.MinTokens > 0}
	if req.Logprobs {
		o.TopLogprobs = max(1, req.TopLogprobs) // without any it tells none at all
	}
	finished := false
	err := g.Generate(ctx, c.rest, o, func(t engine.Generated) bool {
		c.answer.firstToken()
		finished = c.accept(t.Token, TokenLogprobs{Logprob: t.Logprob, Top: t.Top[:min(len(t.Top), req.TopLogprobs)]})
		return !finished
	})
	if err != nil || finished {
		return err
	}
	c.answer.firstToken()
	if c.answer.most == 0 {
		c.finish("", 0, "length")
	} else {
		c.finish("", 0, "stop")
	}
	return nil
}

func (c *choice) sampling() engine.SampleOptions {
	q := c.answer.req
	// Choices differ by their seeds; the first has the request's.
	return engine.SampleOptions{Temperature: q.Temperature, TopP: q.TopP, Seed: q.Seed + uint64(c.index)*0x9e3779b97f4a7c15}
}

// accept takes in a token, tells what has become certain, and reports whether the choice is finished.
func (c *choice) accept(token int32, p TokenLogprobs) (finished bool) {
	piece := c.answer.engine.Tokenizer().Decode([]int32{token})
	c.out.Tokens, c.s.tokens = append(c.out.Tokens, token), append(c.s.tokens, token)
	if c.answer.req.Logprobs {
		p.Token, p.Text = token, piece
		c.probs = append(c.probs, p)
	}
	if len(c.out.Tokens) >= c.answer.req.MinTokens {
		c.text.stops = c.answer.req.Stop
	}
	text, tokens := c.text.add(piece)
	switch {
	case c.text.stopped:
		c.finish(text, tokens, "stop")
	case len(c.out.Tokens) == c.answer.most:
		c.finish(text, tokens, "length")
	default:
		if text != "" || tokens > 0 {
			c.tell(text, tokens, "")
		}
		return false
	}
	return true
}

// finish tells the last of the text and why nothing follows.
func (c *choice) finish(text string, tokens int, why string) {
	if !c.text.stopped {
		more, n := c.text.end()
		text, tokens = text+more, tokens+n
	}
	c.out.Text, c.out.FinishReason = c.text.all.String(), why
	c.tell(text, tokens, why)
}

// tell tells text and how many tokens it shows. The last event has all tokens that are left, so that those of all events are those of the choice.
func (c *choice) tell(text string, tokens int, finish string) {
	end := c.told + tokens
	if finish != "" {
		end = len(c.out.Tokens)
	}
	e := Event{Choice: c.index, Text: text, Tokens: c.out.Tokens[c.told:end:end], FinishReason: finish}
	if !c.begun {
		c.begun, e.Prompt = true, c.answer.scores
	}
	c.told = end
	if c.answer.req.Logprobs {
		e.Logprobs = c.probs[:tokens:tokens]
		c.probs = c.probs[tokens:]
		c.out.Logprobs = append(c.out.Logprobs, e.Logprobs...)
	}
	c.answer.tell(e)
}

// continuePrompt computes what is left of the prompt after a fork, and generates.
func (c *choice) continuePrompt(ctx context.Context) error {
	compute := func() ([]float32, error) { return c.compute(ctx, c.s.tokens[c.s.seq.Len():]) }
	if _, ok := c.s.seq.(engine.Generator); ok {
		compute = func() ([]float32, error) { return c.s.prompt(ctx, &Result{}, c.answer.req.NoCache) }
	}
	logits, err := compute()
	if err != nil {
		return err
	}
	return c.generate(ctx, logits, nil)
}

// keep hands full blocks to the cache, unless the request has nothing to do with it.
func (c *choice) keep() error {
	if c.answer.req.NoCache {
		return nil
	}
	return c.s.keep()
}

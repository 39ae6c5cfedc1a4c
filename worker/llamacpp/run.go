package llamacpp

import (
	"context"
	"errors"
	"time"

	"github.com/kvtier/kvtier/worker/engine"
)

// stepTokens is how many tokens are asked for at a time once streaming has lost some.
const stepTokens = 4

// run is one generation. It streams, until the server leaves out tokens: it does not send those that end inside a character, and sends
// the character's text with its last token. From there on it asks for a few tokens at a time, without a stream, which has them all.
type run struct {
	*sequence
	prompt []int32
	opts   engine.GenerateOptions
	emit   func(engine.Generated) bool
	reuse  bool // the server may use what is in the slot

	got   []int32 // emitted, or refused by emit
	ended bool    // by the end of the text
	left  bool    // by emit
	lost  bool    // the stream has left out tokens
}

// known is whose K/V the slot has at least. The last token's is computed only when something follows it.
func (r *run) known() []int32 {
	all := append(r.prompt, r.got...)
	if len(r.got) > 0 && !r.ended {
		all = all[:len(all)-1]
	}
	return all[:len(all):len(all)]
}

func (r *run) generate(ctx context.Context) error {
	if r.opts.MaxTokens <= 0 {
		return r.request(ctx, 0, func(*event) bool { return true })
	}
	if err := r.stream(ctx); err != nil || !r.lost {
		return err
	}
	for !r.ended && !r.left && len(r.got) < r.opts.MaxTokens {
		if err := r.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// request completes prompt and got by n tokens at most.
func (r *run) request(ctx context.Context, n int, yield func(*event) bool) error {
	req := newCompletion(append(r.prompt[:len(r.prompt):len(r.prompt)], r.got...), r.opts)
	req.Slot, req.CachePrompt, req.Predict = r.slot.id, r.reuse, n
	req.Stream = n > 0 && !r.lost
	req.Seed += uint32(len(r.got)) // a step must not draw what the one before it drew
	return r.engine.client.complete(ctx, req, func(e *event) bool {
		r.reuse = true // what is in the slot from now on is this sequence's own
		if e.Stop {
			r.engine.stats.reused.Add(int64(e.Timings.Reused))
			r.engine.stats.computed.Add(int64(e.Timings.Computed))
			r.engine.stats.busy.Add(int64((e.Timings.PromptMS + e.Timings.PredictedMS) * float64(time.Millisecond)))
		}
		return yield(e)
	})
}

func (r *run) stream(ctx context.Context) error {
	var held *event // without text: perhaps the token that ends the text
	return r.request(ctx, r.opts.MaxTokens, func(e *event) bool {
		if held != nil && !(e.Stop && e.StopType == "eos") {
			if !r.take(held.generated(r.opts.TopLogprobs)) {
				return false
			}
			held = nil
		}
		sent := len(r.got) + len(e.Tokens)
		if held != nil {
			sent++
		}
		if e.Predicted != sent {
			r.lost = true
			return false
		}
		if e.Stop {
			r.ended = e.StopType == "eos"
			return true
		}
		if e.Content == "" {
			held = e
			return true
		}
		return r.take(e.generated(r.opts.TopLogprobs))
	})
}

func (r *run) step(ctx context.Context) error {
	before := len(r.got)
	err := r.request(ctx, min(stepTokens, r.opts.MaxTokens-before), func(e *event) bool {
		all := e.generated(r.opts.TopLogprobs)
		if e.StopType == "eos" {
			r.ended = true
			all = all[:max(0, len(all)-1)]
		}
		return r.take(all)
	})
	if err == nil && len(r.got) == before && !r.ended {
		err = errors.Join(ErrServer, errors.New("it generates nothing"))
	}
	return err
}

// take emits tokens until one is refused, and reports whether to listen on: the last token that was asked for is followed by the server's counts only.
func (r *run) take(all []engine.Generated) bool {
	for _, g := range all {
		if g.Token < 0 || int(g.Token) >= r.engine.tokenizer.vocab || len(r.got) == r.opts.MaxTokens {
			continue
		}
		r.got = append(r.got, g.Token)
		if !r.emit(g) {
			r.left = true
			return len(r.got) == r.opts.MaxTokens
		}
	}
	return true
}

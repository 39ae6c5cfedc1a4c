package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// Request asks for the continuation of a prompt.
type Request struct {
	Prompt string
	Tokens []int32 // instead of Prompt
	// MaxTokens is how many tokens to generate at most; 0 only computes and caches the prompt.
	MaxTokens   int
	Temperature float64 // 0 is greedy
	TopP        float64 // 0 and 1 mean all tokens
	Seed        uint64
	// Salt separates tenants: K/V is shared only between requests of equal salt.
	Salt string
	// NoCache neither reads nor writes the cache: the yardstick that everything else is compared with.
	NoCache bool
	// Priority says whose turn comes first; the zero value is Serving.
	Priority Priority
}

// Priority orders requests that wait for a turn.
type Priority uint8

const (
	Serving    Priority = iota // somebody waits for the answer
	Background                 // a job that fills the tier: runs when nothing else does
)

// Result is a continuation and where its prompt's K/V came from.
type Result struct {
	Text         string
	Tokens       []int32
	FinishReason string // "stop" at the end of text, "length" at MaxTokens

	PromptTokens   int
	HotTokens      int // prompt tokens whose K/V came from the hot tier
	RemoteTokens   int // from the remote tier
	ComputedTokens int // computed; the three add up to PromptTokens
	Miss           tiered.Reason

	Identity block.Identity
	Label    string
	Epoch    block.Epoch
	TTFT     time.Duration // from the call to the first token, waiting included
	Total    time.Duration
}

// CachedTokens is the number of prompt tokens that were not computed.
func (r Result) CachedTokens() int { return r.HotTokens + r.RemoteTokens }

// Complete answers req. It fails with ErrRequest for a request that can never succeed, with ctx's error, or with ErrClosed; never because of
// the cache.
func (r *Replica) Complete(ctx context.Context, req Request) (Result, error) {
	start := time.Now()
	if req.Priority == Serving {
		defer r.serving.begin()()
	}
	if err := r.latch.Acquire(ctx, 1); err != nil {
		return Result{}, fmt.Errorf("worker: waiting for a turn: %w", err)
	}
	defer r.latch.Release(1)
	r.mu.Lock()
	e, label, closed := r.mu.engine, r.mu.label, r.mu.closed
	r.mu.Unlock()
	if closed {
		return Result{}, ErrClosed
	}
	tokens, err := promptTokens(e, req)
	if err != nil {
		return Result{}, err
	}
	seq, err := e.NewSequence()
	if err != nil {
		return Result{}, err
	}
	defer seq.Close()

	s := session{
		cache: r.opts.Cache, engine: e, seq: seq, tokens: tokens,
		// The latch keeps the engine resident until the end, so this view and these weights belong together all the way.
		view:  r.opts.Cache.View(),
		chain: block.NewChain(r.opts.Secret, e.Identity(), req.Salt, e.Layout().BlockTokens),
	}
	s.chain.After(s.view.Cuts[s.chain.Namespace()])
	res := Result{PromptTokens: len(tokens), Identity: e.Identity(), Label: label, Epoch: s.view.Epoch}
	logits, err := s.prompt(ctx, &res, req.NoCache)
	if err != nil {
		return Result{}, err
	}
	sampler := engine.NewSampler(engine.SampleOptions{Temperature: req.Temperature, TopP: req.TopP, Seed: req.Seed})
	next := sampler.Sample(logits)
	res.TTFT = time.Since(start)
	if !req.NoCache {
		// Before decoding: other workers can use the prompt's blocks while this one still generates.
		if err := s.keep(); err != nil {
			return Result{}, err
		}
	}
	res.FinishReason = "length"
	for len(res.Tokens) < req.MaxTokens {
		if next == e.Tokenizer().EOS() {
			res.FinishReason = "stop"
			break
		}
		res.Tokens = append(res.Tokens, next)
		s.tokens = append(s.tokens, next)
		if len(res.Tokens) == req.MaxTokens {
			break
		}
		if logits, err = seq.Prefill(ctx, s.tokens[len(s.tokens)-1:]); err != nil {
			return Result{}, err
		}
		next = sampler.Sample(logits)
	}
	if !req.NoCache {
		if err := s.keep(); err != nil { // generated tokens too: the next turn of a conversation hits them
			return Result{}, err
		}
	}
	res.Text = e.Tokenizer().Decode(res.Tokens)
	res.Total = time.Since(start)
	return res, nil
}

func promptTokens(e engine.Engine, req Request) ([]int32, error) {
	tokens := req.Tokens
	if tokens == nil {
		tokens = e.Tokenizer().Encode(req.Prompt)
	}
	switch limit := e.ContextTokens(); {
	case len(tokens) == 0:
		return nil, fmt.Errorf("%w: the prompt is empty", ErrRequest)
	case req.MaxTokens < 0:
		return nil, fmt.Errorf("%w: max_tokens is %d, want 0 or more", ErrRequest, req.MaxTokens)
	case req.Temperature < 0 || req.Temperature != req.Temperature:
		return nil, fmt.Errorf("%w: temperature is %v, want 0 or more", ErrRequest, req.Temperature)
	case len(tokens) > limit || req.MaxTokens > limit-len(tokens):
		return nil, fmt.Errorf("%w: prompt of %d tokens and max_tokens %d exceed the model's context of %d tokens: shorten one of them",
			ErrRequest, len(tokens), req.MaxTokens, limit)
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= e.Tokenizer().Vocab() {
			return nil, fmt.Errorf("%w: token %d at position %d is outside the vocabulary of %d", ErrRequest, t, i, e.Tokenizer().Vocab())
		}
	}
	return tokens[:len(tokens):len(tokens)], nil // generated tokens are appended: never into the caller's array
}

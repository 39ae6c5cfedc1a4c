package worker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// ErrRequest means that the request itself is wrong; the message says what to change. Such an error is a *RequestError.
var ErrRequest = errors.New("worker: bad request")

// RequestError says what is wrong with a request.
type RequestError struct {
	Code    string // for programs; stable
	Param   string // the field at fault, in the words of the HTTP API; "" for several
	Message string
}

func (e *RequestError) Error() string { return ErrRequest.Error() + ": " + e.Message }

// Is makes every RequestError an ErrRequest.
func (e *RequestError) Is(target error) bool { return target == ErrRequest }

func badRequest(code, param, format string, args ...any) error {
	return &RequestError{Code: code, Param: param, Message: fmt.Sprintf(format, args...)}
}

// FillContext as Request.MaxTokens generates until the model's context is full.
const FillContext = math.MinInt

// Bounds of a request.
const (
	MaxStops       = 16  // stop strings
	MaxStopBytes   = 256 // of each; text is held back for as long as it could become one
	MaxTopLogprobs = 20
)

// Request asks for the continuation of a prompt.
type Request struct {
	Prompt string
	Tokens []int32 // instead of Prompt
	// Markup says that Prompt comes out of a chat template: the texts of special tokens in it stand for those tokens.
	Markup bool
	// MaxTokens is how many tokens to generate at most; 0 only computes and caches the prompt. See FillContext.
	MaxTokens   int
	Temperature float64 // 0 is greedy
	TopP        float64 // 0 and 1 mean all tokens
	Seed        uint64
	// N is how many continuations to generate; 0 means 1. They share the prompt's K/V, which is computed once.
	N int
	// Stop ends a continuation before the first of these texts, wherever the borders of its tokens are.
	Stop []string
	// Logprobs asks for the log-probability of each generated token, and of the TopLogprobs likeliest at its position.
	Logprobs    bool
	TopLogprobs int
	// PromptLogprobs asks, with Logprobs, for those of the prompt's tokens as well. All of the prompt is computed then: K/V from the cache
	// comes without probabilities. It takes an engine.Scorer.
	PromptLogprobs bool
	// IgnoreEOS generates up to MaxTokens whatever the model thinks: the token that ends a text is one like any other.
	IgnoreEOS bool
	// MinTokens is how many tokens to generate at least: before, neither the end of text nor a stop string ends the continuation.
	MinTokens int
	// Salt separates tenants: K/V is shared only between requests of equal salt.
	Salt string
	// NoCache neither reads nor writes the cache: the yardstick that everything else is compared with.
	NoCache bool
	// Priority says whose turn comes first; the zero value is Serving.
	Priority Priority

	only    engine.Engine // if set, no other one may answer
	follows bool          // a part of a request of which another part is in the queue or behind it: it may wait in any case
}

// Priority orders requests that wait for a turn.
type Priority uint8

// The priorities, the first one first.
const (
	Serving    Priority = iota // somebody waits for the answer
	Background                 // a job that fills the tier: runs when nothing else does
)

// Choice is one continuation.
type Choice struct {
	Text   string  // up to the stop string that ended it
	Tokens []int32 // all that were generated, those of a stop string too
	// Prompt is what the model thought of the prompt's tokens, with PromptLogprobs. The first has no probability: nothing is before it.
	Prompt []TokenLogprobs
	// Logprobs belong to the tokens that Text shows; empty unless they were asked for.
	Logprobs     []TokenLogprobs
	FinishReason string // "stop" at the end of text or at a stop string, "length" at MaxTokens
}

// TokenLogprobs is a token and what the model thought of it, before temperature and top-p.
type TokenLogprobs struct {
	Text    string // of the token; may be a part of a character
	Token   int32
	Logprob float32
	Top     []engine.TokenLogprob // likeliest first
}

// Event is a piece of a continuation, as soon as it is certain: whole characters, and nothing that may turn out to belong to a stop string.
type Event struct {
	Choice       int
	Text         string
	Tokens       []int32         // whose text ends here; in the last event also those that have no text, such as a stop string's
	Logprobs     []TokenLogprobs // of those of Tokens whose text is told, if asked for
	Prompt       []TokenLogprobs // of the prompt's tokens, in the first event of a choice, if asked for
	FinishReason string          // of the last event of a choice; "" before
	Source       Source          // of the choice's prompt
}

// Source says where the K/V of a prompt came from.
type Source struct {
	PromptTokens   int
	HotTokens      int // prompt tokens whose K/V came from the hot tier
	RemoteTokens   int // from the remote tier
	ComputedTokens int // computed; the three add up to PromptTokens
}

// CachedTokens is the number of prompt tokens that were not computed.
func (s Source) CachedTokens() int { return s.HotTokens + s.RemoteTokens }

func (s *Source) add(other Source) {
	s.PromptTokens += other.PromptTokens
	s.HotTokens += other.HotTokens
	s.RemoteTokens += other.RemoteTokens
	s.ComputedTokens += other.ComputedTokens
}

// Result is what was generated and where its prompt's K/V came from.
type Result struct {
	Choice          // the first, or only, continuation
	Others []Choice // the second onward

	Source
	Miss tiered.Reason

	Identity block.Identity
	Label    string
	Epoch    block.Epoch
	Waited   time.Duration // for a turn
	TTFT     time.Duration // from the call to the first token, waiting included
	Total    time.Duration
}

// GeneratedTokens counts the tokens of all choices.
func (r Result) GeneratedTokens() int {
	n := len(r.Tokens)
	for _, c := range r.Others {
		n += len(c.Tokens)
	}
	return n
}

// choices is N with its default.
func (q *Request) choices() int { return max(1, q.N) }

// tokens checks the request against an engine and returns the prompt's tokens, in an array of their own, and how many may be generated.
func (q *Request) tokens(ctx context.Context, e engine.Engine, maxChoices int) (tokens []int32, most int, err error) {
	if err := q.check(maxChoices); err != nil {
		return nil, 0, err
	}
	t := e.Tokenizer()
	if tokens = q.Tokens; tokens == nil {
		if tokens, err = encode(ctx, t, q.Prompt, q.Markup); err != nil {
			return nil, 0, fmt.Errorf("worker: tokenise: %w", err)
		}
	}
	limit, most := e.ContextTokens(), q.MaxTokens
	switch {
	case len(tokens) == 0:
		return nil, 0, badRequest("invalid_value", "prompt", "the prompt is empty")
	case most == FillContext && len(tokens) < limit:
		most = limit - len(tokens)
	case len(tokens) > limit || most == FillContext || most > limit-len(tokens):
		return nil, 0, contextExceeded(len(tokens), most, limit)
	}
	if q.MinTokens > most {
		return nil, 0, badRequest("invalid_value", "min_tokens", "min_tokens is %d, more than the %d that may be generated", q.MinTokens, most)
	}
	if _, ok := e.(engine.Scorer); q.PromptLogprobs && !ok {
		return nil, 0, badRequest("unsupported_parameter", "echo", "echo together with logprobs is not supported by this worker's engine: it tells nothing of a prompt's tokens")
	}
	for i, token := range tokens {
		if token < 0 || int(token) >= t.Vocab() {
			return nil, 0, badRequest("invalid_value", "prompt", "token %d at position %d is outside the vocabulary of %d", token, i, t.Vocab())
		}
	}
	return tokens[:len(tokens):len(tokens)], most, nil // generated tokens are appended: never into the caller's array
}

// contextExceeded is in OpenAI's words: clients that fall back to another model, or cut the conversation, know it by them. LangChain looks for "prompt is
// too long": with OpenAI's newer clients it does not see the code.
func contextExceeded(prompt, most, limit int) error {
	if most == FillContext || prompt > limit {
		return badRequest("context_length_exceeded", "prompt",
			"This model's maximum context length is %d tokens. However, your prompt is too long: it has %d tokens and leaves no room for an answer. Please reduce its length.", limit, prompt)
	}
	return badRequest("context_length_exceeded", "prompt",
		"This model's maximum context length is %d tokens. However, you requested %d tokens (%d in the prompt, %d in the completion). Please reduce the length of the prompt or of the completion.",
		limit, uint64(prompt)+uint64(most), prompt, most)
}

func encode(ctx context.Context, t engine.Tokenizer, text string, markup bool) ([]int32, error) {
	if p, ok := t.(engine.PromptEncoder); ok {
		return p.EncodePrompt(ctx, text, markup)
	}
	if special, ok := t.(engine.SpecialEncoder); ok && markup {
		return special.EncodeSpecial(text), nil
	}
	return t.Encode(text), nil
}

// check refuses what no engine could answer.
func (q *Request) check(maxChoices int) error {
	switch {
	case q.MaxTokens < 0 && q.MaxTokens != FillContext:
		return badRequest("invalid_value", "max_tokens", "max_tokens is %d, want 0 or more", q.MaxTokens)
	case q.MinTokens < 0:
		return badRequest("invalid_value", "min_tokens", "min_tokens is %d, want 0 or more", q.MinTokens)
	case !(q.Temperature >= 0) || math.IsInf(q.Temperature, 1):
		return badRequest("invalid_value", "temperature", "temperature is %v, want 0 or more", q.Temperature)
	case !(q.TopP >= 0 && q.TopP <= 1):
		return badRequest("invalid_value", "top_p", "top_p is %v, want 0 to 1", q.TopP)
	case q.choices() > maxChoices || q.N < 0:
		return badRequest("invalid_value", "n", "n is %d, want 1 to %d, as many as this worker runs at once", q.N, maxChoices)
	case q.TopLogprobs < 0 || q.TopLogprobs > MaxTopLogprobs:
		return badRequest("invalid_value", "top_logprobs", "%d likeliest tokens asked for, want 0 to %d", q.TopLogprobs, MaxTopLogprobs)
	case len(q.Stop) > MaxStops:
		return badRequest("invalid_value", "stop", "%d stop strings, want at most %d", len(q.Stop), MaxStops)
	}
	for _, s := range q.Stop {
		if s == "" || len(s) > MaxStopBytes {
			return badRequest("invalid_value", "stop", "a stop string has %d bytes, want 1 to %d", len(s), MaxStopBytes)
		}
	}
	return nil
}

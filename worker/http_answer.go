package worker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// bodyTimeout bounds how long a client may take to send its request.
const bodyTimeout = 30 * time.Second

// format writes answers in the form of one endpoint.
type format interface {
	// chunks are what a stream says of an event, with the usage so far if that is not nil.
	chunks(Event, *usage) []any
	// last is what a stream ends with, when the client wants usage.
	last(usage, kvtierDetails) any
	// whole is an answer that is not streamed.
	whole(Result, usage, kvtierDetails) any
	// field is what the endpoint calls the prompt.
	field() string
}

type usage struct {
	PromptTokens     int               `json:"prompt_tokens"`
	CompletionTokens int               `json:"completion_tokens"`
	TotalTokens      int               `json:"total_tokens"`
	Details          promptDetails     `json:"prompt_tokens_details"`
	Completion       completionDetails `json:"completion_tokens_details"`
}

// promptDetails splits OpenAI's cached_tokens by tier.
type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
	Hot          int `json:"kvtier_hot_tokens"`
	Remote       int `json:"kvtier_remote_tokens"`
	Computed     int `json:"kvtier_computed_tokens"`
}

type completionDetails struct {
	Reasoning int `json:"reasoning_tokens"` // always 0
}

// kvtierDetails says which weights answered, and why what was computed was not in the cache.
type kvtierDetails struct {
	Variant  string  `json:"variant"`
	Weights  string  `json:"weights"`
	Label    string  `json:"label"`
	Epoch    uint64  `json:"epoch"`
	Miss     string  `json:"miss"`
	Degraded bool    `json:"degraded"`
	Waitedms float64 `json:"waited_ms"`
	TTFTms   float64 `json:"ttft_ms"`
}

func (res Result) all() []Choice { return append([]Choice{res.Choice}, res.Others...) }

func (res Result) usage() usage { return usageOf(res.Source, res.GeneratedTokens()) }

func usageOf(s Source, generated int) usage {
	return usage{
		PromptTokens: s.PromptTokens, CompletionTokens: generated, TotalTokens: s.PromptTokens + generated,
		Details: promptDetails{CachedTokens: s.CachedTokens(), Hot: s.HotTokens, Remote: s.RemoteTokens, Computed: s.ComputedTokens},
	}
}

// progress counts the usage of a stream so far: of the prompts that have an answer, and the tokens of all events.
type progress struct {
	choices   int // of each prompt
	prompts   map[int]bool
	sum       Source
	generated int
}

func (p *progress) add(e Event) *usage {
	if at := e.Choice / p.choices; !p.prompts[at] {
		p.prompts[at] = true
		p.sum.add(e.Source)
	}
	p.generated += len(e.Tokens)
	u := usageOf(p.sum, p.generated)
	return &u
}

func (res Result) details() kvtierDetails {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return kvtierDetails{
		Variant: res.Identity.Variant().String(), Weights: res.Identity.Weights.String(), Label: res.Label, Epoch: uint64(res.Epoch),
		Miss: res.Miss.String(), Degraded: res.Miss.Degraded(), Waitedms: ms(res.Waited), TTFTms: ms(res.TTFT),
	}
}

// finite is a log-probability that JSON can carry, as OpenAI writes impossible.
func finite(logprob float32) float32 { return max(logprob, -9999) }

func randomID() string { return strings.ToLower(rand.Text()) }

// decoder is the part of a tokenizer that answers need.
type decoder interface{ Decode(tokens []int32) string }

func (a *api) tokenizer() decoder {
	e, _ := a.replica.Resident()
	return e.Tokenizer()
}

func (a *api) template() *chatTemplate {
	e, _ := a.replica.Resident()
	return a.templates.of(e, a.opts.ChatTemplate)
}

// inField names the field at fault as the client knows it.
func inField(err error, field string) error {
	if e, ok := errors.AsType[*RequestError](err); ok && e.Param == "prompt" && field != e.Param {
		return &RequestError{Code: e.Code, Param: field, Message: e.Message}
	}
	return err
}

// answer runs requests and writes what comes of them, as one document or as a stream.
func (a *api) answer(w http.ResponseWriter, r *http.Request, reqs []Request, s *sampling, f format) {
	ctx, cancel := context.WithTimeout(r.Context(), a.opts.RequestTimeout)
	defer cancel()
	if s.Stream {
		a.stream(ctx, cancel, w, reqs, s.StreamOptions, f)
		return
	}
	res, err := a.replica.StreamAll(ctx, reqs, nil)
	err = shutDown(ctx, err)
	a.metrics.answered(res, err)
	if err != nil {
		a.writeError(w, inField(err, f.field()))
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(a.opts.WriteTimeout))
	httpapi.WriteJSON(w, http.StatusOK, f.whole(res, res.usage(), res.details()))
}

// stream answers by server-sent events. Computing does not wait for the client: events queue up, max_tokens bounds how many, and a client that
// takes longer than WriteTimeout for what it was sent is cut off.
func (a *api) stream(ctx context.Context, cancel context.CancelFunc, w http.ResponseWriter, reqs []Request, o *streamOptions, f format) {
	withUsage := o != nil && o.IncludeUsage
	var sofar *progress
	if withUsage && o.ContinuousUsage {
		sofar = &progress{choices: reqs[0].choices(), prompts: map[int]bool{}}
	}
	events := newEventQueue()
	var res Result
	var err error
	var computing sync.WaitGroup
	computing.Go(func() {
		defer events.close()
		res, err = a.replica.StreamAll(ctx, reqs, events.put)
	})
	out := sse{w: w, control: http.NewResponseController(w), timeout: a.opts.WriteTimeout}
	for batch := events.wait(); batch != nil; batch = events.wait() {
		for _, e := range batch {
			var u *usage
			if sofar != nil {
				u = sofar.add(e)
			}
			for _, chunk := range f.chunks(e, u) {
				out.send(chunk)
			}
		}
		if out.flush(); out.err != nil {
			cancel() // nobody reads what would still come
		}
	}
	computing.Wait()
	err = shutDown(ctx, err)
	if err == nil && out.err != nil {
		err = errors.Join(context.Canceled, out.err)
	}
	a.metrics.answered(res, err)
	err = inField(err, f.field())
	switch {
	case err != nil && !out.begun:
		a.writeError(w, err)
		return
	case err != nil:
		out.send(map[string]any{"error": apiError(err)})
	default:
		if withUsage {
			out.send(f.last(res.usage(), res.details()))
		}
		out.data([]byte("[DONE]"))
	}
	out.flush()
	_ = out.control.SetWriteDeadline(time.Time{})
}

// shutDown makes ErrClosed of the error of a request that the server does not wait for any more: its client is to ask another worker.
func shutDown(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), httpapi.ErrShutdown) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}

// eventQueue hands events from those who compute to the one who writes. Putting never blocks.
type eventQueue struct {
	mu     sync.Mutex
	events []Event
	closed bool
	some   chan struct{}
}

func newEventQueue() *eventQueue { return &eventQueue{some: make(chan struct{}, 1)} }

func (q *eventQueue) put(e Event) {
	q.mu.Lock()
	q.events = append(q.events, e)
	q.mu.Unlock()
	q.signal()
}

func (q *eventQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

func (q *eventQueue) signal() {
	select {
	case q.some <- struct{}{}:
	default:
	}
}

// wait returns what is there, waiting for something, and nil after the last.
func (q *eventQueue) wait() []Event {
	for range q.some {
		q.mu.Lock()
		events, closed := q.events, q.closed
		q.events = nil
		q.mu.Unlock()
		if len(events) > 0 {
			if closed {
				q.signal() // for the nil that follows
			}
			return events
		}
		if closed {
			return nil
		}
	}
	return nil
}

// sse writes server-sent events. After an error it does nothing.
type sse struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	begun   bool
	err     error
}

func (s *sse) send(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.err = errors.Join(s.err, err)
		return
	}
	s.data(b)
}

func (s *sse) data(b []byte) {
	if s.err != nil {
		return
	}
	if !s.begun {
		s.begun = true
		h := s.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Accel-Buffering", "no") // nginx would hold the stream back
		s.w.WriteHeader(http.StatusOK)
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(s.timeout)) // fails for a test's recorder only
	for _, part := range [][]byte{[]byte("data: "), b, []byte("\n\n")} {
		if _, s.err = s.w.Write(part); s.err != nil {
			return
		}
	}
}

func (s *sse) flush() {
	if s.begun && s.err == nil {
		s.err = s.control.Flush()
	}
}

package worker

import (
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// completionRequest is the part of OpenAI's request that the worker honours, and what it refuses by name.
type completionRequest struct {
	sampling
	Prompt   prompts `json:"prompt"`
	Logprobs *int    `json:"logprobs"`
	Echo     bool    `json:"echo"`

	BestOf *int    `json:"best_of"`
	Suffix *string `json:"suffix"`
}

func (q *completionRequest) request(model string) (Request, error) {
	req, err := q.sampling.request(model, "max_tokens", 16)
	if err != nil {
		return req, err
	}
	p, err := q.Prompt.one()
	if err != nil {
		return req, err
	}
	if err := refuse(
		refused{"best_of", q.BestOf != nil && *q.BestOf != max(1, req.N)},
		refused{"suffix", q.Suffix != nil && *q.Suffix != ""},
	); err != nil {
		return req, err
	}
	if q.Echo && q.Logprobs != nil {
		return req, httpapi.BadRequest("unsupported_parameter", "echo", "echo together with logprobs is not supported: tokens of the prompt that were cached have none")
	}
	req.Prompt, req.Tokens = p.text, p.tokens
	if q.Logprobs != nil {
		req.Logprobs, req.TopLogprobs = true, *q.Logprobs
		if req.TopLogprobs < 0 || req.TopLogprobs > 5 {
			return req, httpapi.BadRequest("invalid_value", "logprobs", "logprobs is outside 0 to 5")
		}
	}
	return req, nil
}

type completionResponse struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []completionChoice `json:"choices"`
	Usage   *usage             `json:"usage,omitempty"`
	KVTier  *kvtierDetails     `json:"kvtier,omitempty"`
}

type completionChoice struct {
	Index        int                 `json:"index"`
	Text         string              `json:"text"`
	TokenIDs     []int32             `json:"token_ids"`
	FinishReason *string             `json:"finish_reason"`
	Logprobs     *completionLogprobs `json:"logprobs"`
}

// completionLogprobs has one entry per token in each list. Offsets are in characters of the text, prompt included when it is echoed.
type completionLogprobs struct {
	Tokens        []string             `json:"tokens"`
	TokenLogprobs []float32            `json:"token_logprobs"`
	TopLogprobs   []map[string]float32 `json:"top_logprobs"`
	TextOffset    []int                `json:"text_offset"`
}

func (a *api) completions(w http.ResponseWriter, r *http.Request) {
	var body completionRequest
	if err := a.read(w, r, &body); err != nil {
		a.fail(w, err)
		return
	}
	req, err := body.request(a.opts.Model)
	if err != nil {
		a.fail(w, err)
		return
	}
	a.answer(w, r, req, &body.sampling, &completionFormat{
		header: a.header("cmpl-", "text_completion"), tokenizer: a.tokenizer(), echo: body.Echo, req: &req, offset: map[int]int{}, begun: map[int]bool{},
	})
}

// completionFormat writes answers in the form of /v1/completions.
type completionFormat struct {
	header
	tokenizer decoder
	echo      bool
	req       *Request
	offset    map[int]int  // characters of each choice so far
	begun     map[int]bool // choices that have an event
}

func (f *completionFormat) field() string { return "prompt" }

func (f *completionFormat) response(choices []completionChoice) completionResponse {
	return completionResponse{ID: f.id, Object: f.object, Created: f.created, Model: f.model, Choices: choices}
}

func (f *completionFormat) chunks(e Event) []any {
	text := e.Text
	if f.echo && !f.begun[e.Choice] {
		text = f.prompt() + text
	}
	f.begun[e.Choice] = true
	return []any{f.response([]completionChoice{f.choice(e, text)})}
}

func (f *completionFormat) choice(e Event, text string) completionChoice {
	c := completionChoice{Index: e.Choice, Text: text, TokenIDs: append([]int32{}, e.Tokens...)}
	if e.FinishReason != "" {
		c.FinishReason = &e.FinishReason
	}
	if f.req.Logprobs {
		c.Logprobs = f.logprobs(e)
	}
	return c
}

func (f *completionFormat) logprobs(e Event) *completionLogprobs {
	out := &completionLogprobs{Tokens: []string{}, TokenLogprobs: []float32{}, TopLogprobs: []map[string]float32{}, TextOffset: []int{}}
	for _, p := range e.Logprobs {
		out.Tokens = append(out.Tokens, p.Text)
		out.TokenLogprobs = append(out.TokenLogprobs, finite(p.Logprob))
		top := make(map[string]float32, len(p.Top))
		for _, t := range p.Top {
			if text := f.tokenizer.Decode([]int32{t.Token}); !hasKey(top, text) { // of tokens with one text the likeliest
				top[text] = finite(t.Logprob)
			}
		}
		out.TopLogprobs = append(out.TopLogprobs, top)
		out.TextOffset = append(out.TextOffset, f.offset[e.Choice])
		f.offset[e.Choice] += utf8.RuneCountInString(p.Text)
	}
	return out
}

func hasKey[V any](m map[string]V, k string) bool { _, ok := m[k]; return ok }

// prompt is what is echoed.
func (f *completionFormat) prompt() string {
	if f.req.Tokens != nil {
		return f.tokenizer.Decode(f.req.Tokens)
	}
	return f.req.Prompt
}

func (f *completionFormat) whole(res Result, u usage, d kvtierDetails) any {
	var out []completionChoice
	for i, c := range res.all() {
		text := c.Text
		if f.echo {
			text = f.prompt() + text
		}
		out = append(out, f.choice(Event{Choice: i, Tokens: c.Tokens, Logprobs: c.Logprobs, FinishReason: c.FinishReason}, text))
	}
	answer := f.response(out)
	answer.Usage, answer.KVTier = &u, &d
	return answer
}

func (f *completionFormat) last(u usage, d kvtierDetails) any {
	answer := f.response([]completionChoice{})
	answer.Usage, answer.KVTier = &u, &d
	return answer
}

// header is what every answer and every chunk of a stream begins with.
type header struct {
	id, object, model string
	created           int64
}

func (a *api) header(prefix, object string) header {
	return header{id: prefix + randomID(), object: object, model: a.opts.Model, created: time.Now().Unix()}
}

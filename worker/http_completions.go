package worker

import (
	"net/http"
	"slices"
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

// requests are what is asked for, one for each prompt. They differ in nothing else, but that a client who names no seed gets several.
func (q *completionRequest) requests(model string) ([]Request, error) {
	req, err := q.sampling.request(model, "max_tokens", 16)
	if err != nil {
		return nil, err
	}
	if len(q.Prompt) == 0 {
		return nil, httpapi.BadRequest("missing_field", "prompt", "prompt is missing")
	}
	if err := refuse(
		refused{"best_of", q.BestOf != nil && *q.BestOf != max(1, req.N)},
		refused{"suffix", q.Suffix != nil && *q.Suffix != ""},
	); err != nil {
		return nil, err
	}
	if q.Logprobs != nil {
		req.Logprobs, req.TopLogprobs, req.PromptLogprobs = true, *q.Logprobs, q.Echo
		if req.TopLogprobs < 0 || req.TopLogprobs > 5 {
			return nil, httpapi.BadRequest("invalid_value", "logprobs", "logprobs is outside 0 to 5")
		}
	}
	reqs := make([]Request, len(q.Prompt))
	for i, p := range q.Prompt {
		reqs[i] = req
		reqs[i].Prompt, reqs[i].Tokens = p.text, p.tokens
		if q.Seed == nil && i > 0 {
			reqs[i].Seed = randomSeed()
		}
	}
	return reqs, nil
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

// completionLogprobs has one entry per token in each list, null for the first token of a prompt, which nothing is before. Offsets are in
// characters of the text, prompt included when it is echoed.
type completionLogprobs struct {
	Tokens        []string             `json:"tokens"`
	TokenLogprobs []*float32           `json:"token_logprobs"`
	TopLogprobs   []map[string]float32 `json:"top_logprobs"`
	TextOffset    []int                `json:"text_offset"`
}

func (a *api) completions(w http.ResponseWriter, r *http.Request) {
	var body completionRequest
	if err := a.read(w, r, &body); err != nil {
		a.fail(w, err)
		return
	}
	reqs, err := body.requests(a.opts.Model)
	if err != nil {
		a.fail(w, err)
		return
	}
	a.answer(w, r, reqs, &body.sampling, &completionFormat{
		header: a.header("cmpl-", "text_completion"), tokenizer: a.tokenizer(), echo: body.Echo, reqs: reqs, texts: map[int]*place{},
	})
}

// completionFormat writes answers in the form of /v1/completions.
type completionFormat struct {
	header
	tokenizer decoder
	echo      bool
	reqs      []Request
	texts     map[int]*place // of the choices that have begun
}

// place is how far the text of a choice has come, in characters.
type place struct{ characters int }

func (f *completionFormat) field() string { return "prompt" }

func (f *completionFormat) response(choices []completionChoice) completionResponse {
	return completionResponse{ID: f.id, Object: f.object, Created: f.created, Model: f.model, Choices: choices}
}

func (f *completionFormat) chunks(e Event, u *usage) []any {
	text := e.Text
	if f.echo && f.texts[e.Choice] == nil {
		text = f.prompt(e.Choice) + text
	}
	answer := f.response([]completionChoice{f.choice(e, text)})
	answer.Usage = u
	return []any{answer}
}

func (f *completionFormat) choice(e Event, text string) completionChoice {
	if f.texts[e.Choice] == nil {
		f.texts[e.Choice] = &place{}
	}
	c := completionChoice{Index: e.Choice, Text: text, TokenIDs: append([]int32{}, e.Tokens...)}
	if e.FinishReason != "" {
		c.FinishReason = &e.FinishReason
	}
	if f.reqs[0].Logprobs {
		c.Logprobs = f.logprobs(e)
	}
	return c
}

func (f *completionFormat) logprobs(e Event) *completionLogprobs {
	out := &completionLogprobs{Tokens: []string{}, TokenLogprobs: []*float32{}, TopLogprobs: []map[string]float32{}, TextOffset: []int{}}
	at := f.texts[e.Choice]
	for i, p := range slices.Concat(e.Prompt, e.Logprobs) {
		out.Tokens = append(out.Tokens, p.Text)
		out.TextOffset = append(out.TextOffset, at.add(p.Text))
		if i == 0 && len(e.Prompt) > 0 {
			out.TokenLogprobs, out.TopLogprobs = append(out.TokenLogprobs, nil), append(out.TopLogprobs, nil)
			continue
		}
		logprob := finite(p.Logprob)
		out.TokenLogprobs = append(out.TokenLogprobs, &logprob)
		top := make(map[string]float32, len(p.Top))
		for _, t := range p.Top {
			if text := f.tokenizer.Decode([]int32{t.Token}); !hasKey(top, text) { // of tokens with one text the likeliest
				top[text] = finite(t.Logprob)
			}
		}
		out.TopLogprobs = append(out.TopLogprobs, top)
	}
	return out
}

// add returns where the next token of the text begins. One that goes on with a character begins where that character does.
func (p *place) add(text string) (offset int) {
	offset = p.characters
	if text != "" && !utf8.RuneStart(text[0]) && offset > 0 {
		offset--
	}
	for i := range len(text) {
		if utf8.RuneStart(text[i]) {
			p.characters++
		}
	}
	return offset
}

func hasKey[V any](m map[string]V, k string) bool { _, ok := m[k]; return ok }

// prompt is what is echoed in front of a choice.
func (f *completionFormat) prompt(choice int) string {
	q := f.reqs[choice/f.reqs[0].choices()]
	if q.Tokens != nil {
		return f.tokenizer.Decode(q.Tokens)
	}
	return q.Prompt
}

func (f *completionFormat) whole(res Result, u usage, d kvtierDetails) any {
	var out []completionChoice
	for i, c := range res.all() {
		text := c.Text
		if f.echo {
			text = f.prompt(i) + text
		}
		out = append(out, f.choice(Event{Choice: i, Tokens: c.Tokens, Logprobs: c.Logprobs, Prompt: c.Prompt, FinishReason: c.FinishReason}, text))
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

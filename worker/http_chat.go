package worker

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// chatRequest is the part of OpenAI's request that the worker honours, and what it refuses by name.
type chatRequest struct {
	sampling
	Messages            []message `json:"messages"`
	MaxCompletionTokens *int      `json:"max_completion_tokens"`
	Logprobs            bool      `json:"logprobs"`
	TopLogprobs         *int      `json:"top_logprobs"`

	Tools             []any           `json:"tools"`
	ToolChoice        any             `json:"tool_choice"`
	ParallelToolCalls *bool           `json:"parallel_tool_calls"` // of none
	Functions         []any           `json:"functions"`
	FunctionCall      any             `json:"function_call"`
	ResponseFormat    *responseFormat `json:"response_format"`
	Modalities        []string        `json:"modalities"`
	Audio             any             `json:"audio"`
	Prediction        any             `json:"prediction"` // makes an answer come sooner at best, and not another one
	ReasoningEffort   *string         `json:"reasoning_effort"`
	Verbosity         *string         `json:"verbosity"`
	WebSearchOptions  any             `json:"web_search_options"`
}

type responseFormat struct {
	Type       string `json:"type"`
	JSONSchema any    `json:"json_schema"`
	Schema     any    `json:"schema"`  // some servers' place for it
	Grammar    any    `json:"grammar"` // of type grammar
}

// message is one turn of a conversation.
type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
	Name    string  `json:"name"`

	Refusal      any   `json:"refusal"`
	Audio        any   `json:"audio"`
	Annotations  any   `json:"annotations"`
	ToolCalls    []any `json:"tool_calls"`
	FunctionCall any   `json:"function_call"`
	ToolCallID   any   `json:"tool_call_id"`
}

// roles that a message may have, and what templates call them.
var roles = map[string]string{"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

func (q *chatRequest) request(model string) (Request, error) {
	limit := "max_tokens"
	if q.MaxCompletionTokens != nil {
		q.MaxTokens, limit = q.MaxCompletionTokens, "max_completion_tokens"
	}
	req, err := q.sampling.request(model, limit, FillContext)
	if err != nil {
		return req, err
	}
	if err := refuse(
		refused{"tools", len(q.Tools) > 0}, refused{"functions", len(q.Functions) > 0},
		refused{"tool_choice", q.ToolChoice != nil && q.ToolChoice != "none" && q.ToolChoice != "auto"}, refused{"function_call", q.FunctionCall != nil && q.FunctionCall != "none"},
		refused{"modalities", len(q.Modalities) > 1 || len(q.Modalities) == 1 && q.Modalities[0] != "text"},
		refused{"reasoning_effort", q.ReasoningEffort != nil && *q.ReasoningEffort != "none"}, refused{"verbosity", q.Verbosity != nil && *q.Verbosity != "medium"},
		refused{"audio", q.Audio != nil}, refused{"web_search_options", q.WebSearchOptions != nil},
	); err != nil {
		return req, err
	}
	if f := q.ResponseFormat; f != nil && f.Type != "text" { // in OpenAI's words, by which LangChain knows what to advise
		return req, httpapi.BadRequest("unsupported_parameter", "response_format",
			fmt.Sprintf("Invalid parameter: 'response_format' of type '%.40s' is not supported with this model: leave it out.", f.Type))
	}
	if len(q.Messages) == 0 {
		return req, httpapi.BadRequest("missing_field", "messages", "messages is missing or empty")
	}
	for i := range q.Messages {
		if err := q.Messages[i].check(i); err != nil {
			return req, err
		}
	}
	if q.TopLogprobs != nil && !q.Logprobs {
		return req, httpapi.BadRequest("invalid_value", "top_logprobs", "top_logprobs needs logprobs: true")
	}
	req.Logprobs = q.Logprobs
	set(&req.TopLogprobs, q.TopLogprobs)
	return req, nil
}

func (m *message) check(i int) error {
	role, ok := roles[m.Role]
	if !ok {
		return httpapi.BadRequest("invalid_value", "messages", fmt.Sprintf("message %d has role %.40q, want system, developer, user or assistant", i, m.Role))
	}
	if !m.Content.set && role != "assistant" { // an assistant's may be null, where it refused
		return httpapi.BadRequest("missing_field", "messages", fmt.Sprintf("message %d, of role %s, has no content", i, m.Role))
	}
	m.Role = role
	if len(m.ToolCalls) > 0 || m.FunctionCall != nil || m.ToolCallID != nil {
		return httpapi.BadRequest("unsupported_parameter", "messages", fmt.Sprintf("message %d calls a tool, which is not supported", i))
	}
	return nil
}

type chatResponse struct {
	ID      string         `json:"id"`
	Object  string         `json:"object"`
	Created int64          `json:"created"`
	Model   string         `json:"model"`
	Choices []chatChoice   `json:"choices"`
	Usage   *usage         `json:"usage,omitempty"`
	KVTier  *kvtierDetails `json:"kvtier,omitempty"`
}

type chatChoice struct {
	Index        int           `json:"index"`
	Message      *chatMessage  `json:"message,omitempty"`
	Delta        *chatDelta    `json:"delta,omitempty"`
	Logprobs     *chatLogprobs `json:"logprobs"`
	FinishReason *string       `json:"finish_reason"`
}

type chatMessage struct {
	Role    string  `json:"role"`
	Content string  `json:"content"`
	Refusal *string `json:"refusal"`
}

type chatDelta struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

type chatLogprobs struct {
	Content []chatTokenLogprob `json:"content"`
	Refusal []chatTokenLogprob `json:"refusal"`
}

type chatTokenLogprob struct {
	tokenLogprob
	Top []tokenLogprob `json:"top_logprobs"`
}

// tokenLogprob carries the bytes as well: a token may be a part of a character.
type tokenLogprob struct {
	Token   string  `json:"token"`
	Logprob float32 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

func newTokenLogprob(text string, logprob float32) tokenLogprob {
	t := tokenLogprob{Token: text, Logprob: finite(logprob), Bytes: make([]int, len(text))}
	for i := range len(text) {
		t.Bytes[i] = int(text[i])
	}
	return t
}

func (a *api) chat(w http.ResponseWriter, r *http.Request) {
	var body chatRequest
	if err := a.read(w, r, &body); err != nil {
		a.fail(w, err)
		return
	}
	req, err := body.request(a.opts.Model)
	if err == nil {
		req.Prompt, req.Markup, err = a.template().render(body.Messages)
	}
	if err != nil {
		a.fail(w, err)
		return
	}
	object := "chat.completion"
	if body.Stream {
		object = "chat.completion.chunk"
	}
	a.answer(w, r, []Request{req}, &body.sampling, &chatFormat{header: a.header("chatcmpl-", object), tokenizer: a.tokenizer(), logprobs: req.Logprobs, begun: map[int]bool{}})
}

// chatFormat writes answers in the form of /v1/chat/completions.
type chatFormat struct {
	header
	tokenizer decoder
	logprobs  bool
	begun     map[int]bool // choices that have an event
}

func (f *chatFormat) field() string { return "messages" }

func (f *chatFormat) response(choices []chatChoice) chatResponse {
	return chatResponse{ID: f.id, Object: f.object, Created: f.created, Model: f.model, Choices: choices}
}

func (f *chatFormat) chunks(e Event, u *usage) (out []any) {
	add := func(c chatChoice) {
		c.Index = e.Choice
		answer := f.response([]chatChoice{c})
		answer.Usage = u
		out = append(out, answer)
	}
	if !f.begun[e.Choice] {
		f.begun[e.Choice] = true
		add(chatChoice{Delta: &chatDelta{Role: "assistant", Content: new("")}})
	}
	if e.Text != "" || len(e.Logprobs) > 0 {
		add(chatChoice{Delta: &chatDelta{Content: &e.Text}, Logprobs: f.logprobsOf(e.Logprobs)})
	}
	if e.FinishReason != "" {
		add(chatChoice{Delta: &chatDelta{}, FinishReason: &e.FinishReason})
	}
	return out
}

func (f *chatFormat) logprobsOf(tokens []TokenLogprobs) *chatLogprobs {
	if !f.logprobs {
		return nil
	}
	out := &chatLogprobs{Content: []chatTokenLogprob{}}
	for _, p := range tokens {
		t := chatTokenLogprob{tokenLogprob: newTokenLogprob(p.Text, p.Logprob), Top: []tokenLogprob{}}
		for _, other := range p.Top {
			t.Top = append(t.Top, newTokenLogprob(f.tokenizer.Decode([]int32{other.Token}), other.Logprob))
		}
		out.Content = append(out.Content, t)
	}
	return out
}

func (f *chatFormat) whole(res Result, u usage, d kvtierDetails) any {
	var out []chatChoice
	for i, c := range res.all() {
		out = append(out, chatChoice{Index: i, Message: &chatMessage{Role: "assistant", Content: c.Text}, Logprobs: f.logprobsOf(c.Logprobs), FinishReason: &c.FinishReason})
	}
	answer := f.response(out)
	answer.Usage, answer.KVTier = &u, &d
	return answer
}

func (f *chatFormat) last(u usage, d kvtierDetails) any {
	answer := f.response([]chatChoice{})
	answer.Usage, answer.KVTier = &u, &d
	return answer
}

// plainTemplate is the form of a play: the speaker's name in capitals, what is said, an empty line; then it is the assistant's turn. A message's
// name, if it has one, is the speaker's, otherwise its role. It is used for models that have no template of their own.
func plainTemplate(messages []message) string {
	var b strings.Builder
	for _, m := range messages {
		speaker := m.Name
		if speaker == "" {
			speaker = m.Role
		}
		fmt.Fprintf(&b, "%s:\n%s\n\n", strings.ToUpper(speaker), m.Content.text)
	}
	b.WriteString("ASSISTANT:\n")
	return b.String()
}

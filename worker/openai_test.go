package worker_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"

	"github.com/kvtier/kvtier/worker"
)

// client is OpenAI's own, as it comes, pointed at a worker.
func client(t *testing.T, change func(*worker.Options)) openai.Client {
	t.Helper()
	s := serve(t, newReplica(t, v2, nil, change), worker.HandlerOptions{Token: "secret"})
	return openai.NewClient(option.WithBaseURL(s.URL+"/v1"), option.WithAPIKey("secret"), option.WithHTTPClient(s.Client()), option.WithMaxRetries(0))
}

func TestOpenAIClientCompletes(t *testing.T) {
	c := client(t, nil)
	params := openai.CompletionNewParams{
		Model: "shakespeare", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String(speech)}, MaxTokens: openai.Int(24), Temperature: openai.Float(0),
		N: openai.Int(2), Logprobs: openai.Int(3), Seed: openai.Int(-7), User: openai.String("somebody"),
	}
	whole, err := c.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	if len(whole.Choices) != 2 || whole.Choices[0].Text == "" || whole.Choices[0].Text != whole.Choices[1].Text || whole.Choices[0].FinishReason != "length" {
		t.Fatalf("%s", whole.RawJSON())
	}
	if u := whole.Usage; u.CompletionTokens != 48 || u.TotalTokens != u.PromptTokens+48 || u.PromptTokensDetails.CachedTokens != 0 {
		t.Errorf("%s", u.RawJSON())
	}
	p := whole.Choices[0].Logprobs
	if len(p.Tokens) != 24 || len(p.TokenLogprobs) != 24 || len(p.TopLogprobs) != 24 || strings.Join(p.Tokens, "") != whole.Choices[0].Text {
		t.Errorf("logprobs %s", p.RawJSON())
	}
	for i, offset := range p.TextOffset {
		if !strings.HasPrefix(whole.Choices[0].Text[offset:], p.Tokens[i]) {
			t.Errorf("token %q is not at %d of %q", p.Tokens[i], offset, whole.Choices[0].Text)
		}
		if best := p.TopLogprobs[i][p.Tokens[i]]; len(p.TopLogprobs[i]) > 3 || best != p.TokenLogprobs[i] {
			t.Errorf("greedy token %q has %v, the likeliest are %v", p.Tokens[i], p.TokenLogprobs[i], p.TopLogprobs[i])
		}
	}

	params.N, params.Logprobs, params.StreamOptions.IncludeUsage = openai.Int(1), param.Opt[int64]{}, openai.Bool(true)
	params.Stop = openai.CompletionNewParamsStopUnion{OfStringArray: []string{whole.Choices[0].Text[10:14]}}
	stream := c.Completions.NewStreaming(t.Context(), params)
	text, finish, events := "", "", 0
	var usage openai.CompletionUsage
	for stream.Next() {
		e := stream.Current()
		events++
		for _, choice := range e.Choices {
			text, finish = text+choice.Text, string(choice.FinishReason)
		}
		if len(e.Choices) == 0 {
			usage = e.Usage
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if want := whole.Choices[0].Text; text != want[:strings.Index(want, want[10:14])] || finish != "stop" || events < 4 {
		t.Errorf("%d events, %q (%s), want %q up to %q", events, text, finish, want, want[10:14])
	}
	if usage.PromptTokensDetails.CachedTokens == 0 || usage.PromptTokensDetails.CachedTokens+1 > usage.PromptTokens {
		t.Errorf("usage at the end: %s", usage.RawJSON())
	}
}

func TestOpenAIClientChats(t *testing.T) {
	c := client(t, nil)
	params := openai.ChatCompletionNewParams{
		Model: "shakespeare", MaxCompletionTokens: openai.Int(16), Temperature: openai.Float(0), Logprobs: openai.Bool(true), TopLogprobs: openai.Int(2),
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage("Padua. A public place."), openai.DeveloperMessage("Enter BAPTISTA."),
			openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{openai.TextContentPart("Gentlemen, "), openai.TextContentPart("importune me no farther.")}),
		},
	}
	whole, err := c.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	choice := whole.Choices[0]
	if choice.Message.Role != "assistant" || choice.Message.Content == "" || choice.FinishReason != "length" || len(choice.Logprobs.Content) != 16 || len(choice.Logprobs.Content[0].TopLogprobs) != 2 {
		t.Errorf("%s", whole.RawJSON())
	}
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := c.Chat.Completions.NewStreaming(t.Context(), params)
	acc := openai.ChatCompletionAccumulator{}
	for stream.Next() {
		if !acc.AddChunk(stream.Current()) {
			t.Errorf("a chunk that does not fit: %s", stream.Current().RawJSON())
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	got := acc.Choices[0]
	if got.Message.Content != choice.Message.Content || got.Message.Role != "assistant" || got.FinishReason != "length" || len(got.Logprobs.Content) != 16 || acc.Usage.CompletionTokens != 16 {
		t.Errorf("streamed %+v, want %q", got, choice.Message.Content)
	}
}

// What the last turn generated is hit by the next one, up to the last full block whose tokens are the same.
func TestOpenAIClientTalksOn(t *testing.T) {
	r := newReplica(t, v2, nil, nil)
	s := serve(t, r, worker.HandlerOptions{})
	c := openai.NewClient(option.WithBaseURL(s.URL+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0))
	e, _ := r.Resident()
	params := openai.ChatCompletionNewParams{Model: "shakespeare", MaxTokens: openai.Int(40), Temperature: openai.Float(0)}
	said := ""
	var before []int32 // prompt and answer of the last turn
	for turn, line := range []string{"You are call'd plain Kate, and bonny Kate.", "Myself am moved to woo thee for my wife.", "Why, what's a moveable?", "Thou hast hit it: come, sit on me."} {
		params.Messages = append(params.Messages, openai.UserMessage(line))
		res, err := c.Chat.Completions.New(t.Context(), params)
		if err != nil {
			t.Fatal(err)
		}
		said += "USER:\n" + line + "\n\nASSISTANT:\n"
		prompt := e.Tokenizer().Encode(said)
		same := 0
		for same < len(before) && same < len(prompt) && before[same] == prompt[same] {
			same++
		}
		// The last generated token has no K/V, and the last token of a prompt is always computed.
		want := min(same, max(len(before)-1, 0), len(prompt)-1) / 16 * 16
		if got := int(res.Usage.PromptTokensDetails.CachedTokens); got != want || turn > 0 && got < len(before)-3*16 {
			t.Errorf("turn %d: %d tokens hit, want %d; %d of %d before are the same", turn, got, want, same, len(before))
		}
		answer := res.Choices[0].Message.Content
		params.Messages = append(params.Messages, openai.AssistantMessage(answer))
		said += answer + "\n\n"
		before = append(prompt, e.Tokenizer().Encode(answer)...)
	}
}

func TestOpenAIClientSeesErrors(t *testing.T) {
	c := client(t, func(o *worker.Options) { o.MaxQueue = -1 })
	prompt := openai.CompletionNewParamsPromptUnion{OfString: openai.String("a")}
	for name, f := range map[string]struct {
		call              func(ctx context.Context) error
		status            int
		kind, code, param string
	}{
		"unknown model": {func(ctx context.Context) error {
			_, err := c.Completions.New(ctx, openai.CompletionNewParams{Model: "gpt-9", Prompt: prompt})
			return err
		}, 404, "invalid_request_error", "model_not_found", "model"},
		"context": {func(ctx context.Context) error {
			_, err := c.Completions.New(ctx, openai.CompletionNewParams{Model: "shakespeare", Prompt: prompt, MaxTokens: openai.Int(5000)})
			return err
		}, 400, "invalid_request_error", "context_length_exceeded", "prompt"},
		"in a stream": {func(ctx context.Context) error {
			s := c.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{Model: "shakespeare", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(strings.Repeat("word ", 3000))}})
			for s.Next() {
			}
			return s.Err()
		}, 400, "invalid_request_error", "context_length_exceeded", "messages"},
		"tools": {func(ctx context.Context) error {
			_, err := c.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: "shakespeare", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("a")},
				Tools: []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "f"})}})
			return err
		}, 400, "invalid_request_error", "unsupported_parameter", "tools"},
		"image": {func(ctx context.Context) error {
			_, err := c.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: "shakespeare", Messages: []openai.ChatCompletionMessageParamUnion{
				openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:,"})})}})
			return err
		}, 400, "invalid_request_error", "unsupported_content", "messages"},
		"wrong key": {func(ctx context.Context) error {
			_, err := c.Models.List(ctx, option.WithAPIKey("wrong"))
			return err
		}, 401, "authentication_error", "invalid_token", ""},
		"no such model": {func(ctx context.Context) error {
			_, err := c.Models.Get(ctx, "gpt-9")
			return err
		}, 404, "invalid_request_error", "model_not_found", "model"},
	} {
		e, ok := errors.AsType[*openai.Error](f.call(t.Context()))
		if !ok || e.StatusCode != f.status || e.Type != f.kind || e.Code != f.code || e.Param != f.param || e.Message == "" {
			t.Errorf("%s: %+v, want %d %s %s %s", name, e, f.status, f.kind, f.code, f.param)
		}
	}
	models, err := c.Models.List(t.Context())
	if err != nil || len(models.Data) != 1 || models.Data[0].ID != "shakespeare" || models.Data[0].OwnedBy != "kvtier" {
		t.Errorf("models %+v, %v", models, err)
	}
	if m, err := c.Models.Get(t.Context(), "shakespeare"); err != nil || m.ID != "shakespeare" {
		t.Errorf("model %+v, %v", m, err)
	}
}

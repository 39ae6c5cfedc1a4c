package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
)

// continuation is a choice of a completion, or what the events of a stream add up to.
type continuation struct {
	Text     string
	TokenIDs []int32 `json:"token_ids"`
	Finish   string  `json:"finish_reason"`
	Logprobs *struct {
		Tokens []string
		Probs  []*float32           `json:"token_logprobs"`
		Top    []map[string]float32 `json:"top_logprobs"`
		Offset []int                `json:"text_offset"`
	}
}

type completion struct {
	Choices []struct {
		Index int
		continuation
	}
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Total      int `json:"total_tokens"`
		Details    struct {
			Cached   int `json:"cached_tokens"`
			Computed int `json:"kvtier_computed_tokens"`
		} `json:"prompt_tokens_details"`
	}
	KVTier struct{ Variant string }
}

// completed sends a body and returns the choices in order; those of a stream put together by their index.
func completed(t testing.TB, h http.Handler, body string) ([]continuation, completion) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/completions", strings.NewReader(body)))
	if rec.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", body, rec.Code, rec.Body)
	}
	var last completion
	var out []continuation
	events := []string{rec.Body.String()}
	if strings.HasPrefix(rec.Header().Get("Content-Type"), "text/event-stream") {
		events = strings.Split(strings.TrimSpace(rec.Body.String()), "\n\n")
		if end := events[len(events)-1]; end != "data: [DONE]" {
			t.Fatalf("%s ends with %s", body, end)
		}
		events = events[:len(events)-1]
	}
	for _, event := range events {
		last = completion{}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(event, "data: ")), &last); err != nil {
			t.Fatalf("%v: %s", err, event)
		}
		for _, c := range last.Choices {
			for len(out) <= c.Index {
				out = append(out, continuation{})
			}
			o := &out[c.Index]
			if o.Finish != "" {
				t.Errorf("%s: an event of choice %d behind its last: %s", body, c.Index, event)
			}
			o.Text, o.TokenIDs, o.Finish = o.Text+c.Text, append(o.TokenIDs, c.TokenIDs...), c.Finish
			switch l := c.Logprobs; {
			case l == nil:
			case o.Logprobs == nil:
				o.Logprobs = l
			default:
				o.Logprobs.Tokens, o.Logprobs.Probs = append(o.Logprobs.Tokens, l.Tokens...), append(o.Logprobs.Probs, l.Probs...)
				o.Logprobs.Top, o.Logprobs.Offset = append(o.Logprobs.Top, l.Top...), append(o.Logprobs.Offset, l.Offset...)
			}
		}
	}
	return out, last
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	g, err := json.Marshal(got)
	w, err2 := json.Marshal(want)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if string(g) != string(w) {
		t.Errorf("%s:\n%s, want\n%s", what, g, w)
	}
}

// Several prompts are answered as each of them is alone, in order, as one document and as a stream.
func TestSeveralPrompts(t *testing.T) {
	r := replicaOf(t, tiny(t), func(o *worker.Options) { o.MaxSequences, o.MaxQueue = 4, 1 })
	h := worker.Handler(r, worker.HandlerOptions{Model: "shakespeare"})
	e, _ := r.Resident()
	texts := []string{"a b c", "the quick brown fox", "a b c", "x", "12", "the quick brown dog", "a b d"}
	for _, n := range []int{1, 2} {
		for _, rest := range []string{`"temperature":0.8,"seed":5`, `"temperature":0,"logprobs":2,"ignore_eos":true`, `"temperature":1,"seed":9,"echo":true,"logprobs":1`, `"temperature":0,"max_tokens":0,"echo":true`} {
			if !strings.Contains(rest, "max_tokens") {
				rest += `,"max_tokens":9`
			}
			rest = fmt.Sprintf(`"n":%d,%s`, n, rest)
			var want []continuation
			var ids [][]int32
			tokens := 0
			for _, text := range texts {
				alone, c := completed(t, h, fmt.Sprintf(`{"prompt":%q,%s}`, text, rest))
				want = append(want, alone...)
				ids = append(ids, e.Tokenizer().Encode(text))
				tokens += c.Usage.Prompt
			}
			many, _ := json.Marshal(texts)
			lists, _ := json.Marshal(ids)
			for _, prompt := range [][]byte{many, lists} {
				got, c := completed(t, h, fmt.Sprintf(`{"prompt":%s,%s}`, prompt, rest))
				same(t, rest, got, want)
				generated := 0
				for _, c := range want {
					generated += len(c.TokenIDs)
				}
				if c.Usage.Prompt != tokens || c.Usage.Completion != generated || c.Usage.Total != tokens+generated {
					t.Errorf("%s: usage %+v, want %d and %d", rest, c.Usage, tokens, generated)
				}
				got, c = completed(t, h, fmt.Sprintf(`{"prompt":%s,%s,"stream":true,"stream_options":{"include_usage":true}}`, prompt, rest))
				same(t, "streamed, "+rest, got, want)
				if c.Usage.Prompt != tokens || c.Usage.Completion != generated {
					t.Errorf("streamed, %s: usage %+v, want %d and %d", rest, c.Usage, tokens, generated)
				}
			}
		}
	}
}

// A prompt that cannot be answered fails the request before anything is computed.
func TestOneBadPromptFailsAll(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	s := serve(t, replicaOf(t, watch, nil), worker.HandlerOptions{})
	for _, body := range []string{`{"prompt":["a","b",""]}`, `{"prompt":[[3],[4],[100000]],"stream":true}`, `{"prompt":["a","b"],"max_tokens":5000}`} {
		if status, answer := post(t, s, body); status != http.StatusBadRequest || !strings.Contains(answer, `"param":"prompt"`) {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	if calls, _ := watch.log(); len(calls) > 0 {
		t.Errorf("computed all the same: %v", calls)
	}
}

// One set of weights answers all prompts of a request, though others become resident meanwhile.
func TestSeveralPromptsHaveOneSetOfWeights(t *testing.T) {
	before, after := enginetest.Tiny(t, 1), enginetest.Tiny(t, 2)
	watch := &watched{Engine: before}
	r := replicaOf(t, watch, func(o *worker.Options) { o.MaxSequences = 1 })
	swapped := make(chan error, 1)
	var once atomic.Bool
	watch.before = func(call) error {
		if once.CompareAndSwap(false, true) {
			loading := make(chan struct{})
			go func() {
				swapped <- r.SwapWeights(context.WithoutCancel(t.Context()), "after", func(context.Context) (engine.Engine, error) {
					close(loading)
					return enginetest.Tiny(t, 2), nil
				})
			}()
			<-loading
			if !poll(r.Latched) { // it waits for this request, and the next ones for it
				return errors.New("the exchange does not wait")
			}
		}
		return nil
	}
	var reqs []worker.Request
	for i := range 8 {
		reqs = append(reqs, worker.Request{Tokens: []int32{3, 4, int32(5 + i)}, MaxTokens: 4, IgnoreEOS: true})
	}
	res, err := r.StreamAll(t.Context(), reqs, nil)
	if err := errors.Join(err, <-swapped); err != nil {
		t.Fatal(err)
	}
	if res.Identity != after.Identity() || len(res.Others) != len(reqs)-1 {
		t.Fatalf("%d answers by %v, want %d by %v", 1+len(res.Others), res.Identity, len(reqs), after.Identity())
	}
	alone := replicaOf(t, after, nil)
	for i, c := range append([]worker.Choice{res.Choice}, res.Others...) {
		want, err := alone.Complete(t.Context(), reqs[i])
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(c.Tokens, want.Tokens) {
			t.Errorf("prompt %d: %v, want %v", i, c.Tokens, want.Tokens)
		}
	}
}

// A stream says what an answer in one piece says, tokens of a stop string included, wherever they fall.
func TestStreamsHaveTheTokensOfAnswers(t *testing.T) {
	h := worker.Handler(newReplica(t, v2, nil, nil), worker.HandlerOptions{Model: "shakespeare"})
	stopped := 0
	for seed := range 60 {
		body := fmt.Sprintf(`{"prompt":"GREMIO:\n","max_tokens":24,"seed":%d`, seed)
		free, _ := completed(t, h, body+`}`)
		text := free[0].Text
		for at := 1; at+4 < len(text); at += 5 {
			stop, err := json.Marshal([]string{text[at : at+1+seed%4], "no such text"})
			if err != nil {
				t.Fatal(err)
			}
			rest := fmt.Sprintf(`,"stop":%s,"logprobs":%d`, stop, seed%3)
			whole, c := completed(t, h, body+rest+`}`)
			streamed, last := completed(t, h, body+rest+`,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`)
			same(t, body+rest, streamed, whole)
			if n := len(whole[0].TokenIDs); n != c.Usage.Completion || n != last.Usage.Completion {
				t.Errorf("%s%s: %d tokens, usage %d and streamed %d", body, rest, n, c.Usage.Completion, last.Usage.Completion)
			}
			if whole[0].Finish == "stop" {
				stopped++
			}
		}
	}
	if stopped < 100 {
		t.Errorf("only %d answers were stopped", stopped)
	}
}

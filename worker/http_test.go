package worker_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/worker"
)

func serve(t testing.TB, r *worker.Replica, o worker.HandlerOptions) *httptest.Server {
	t.Helper()
	o.Model = "shakespeare"
	s := httptest.NewServer(worker.Handler(r, o))
	t.Cleanup(s.Close)
	return s
}

func post(t testing.TB, s *httptest.Server, body string) (status int, answer string) {
	t.Helper()
	resp, err := s.Client().Post(s.URL+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestCompletionsTellWhereTheTokensCameFrom(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	ra, rb := newReplica(t, v2, remote, nil), newReplica(t, v2, remote, nil)
	a, b := serve(t, ra, worker.HandlerOptions{}), serve(t, rb, worker.HandlerOptions{})
	body := fmt.Sprintf(`{"model":"shakespeare","prompt":%q,"max_tokens":4,"temperature":0}`, speech)
	var texts []string
	for i, c := range []struct {
		at          *httptest.Server
		hot, remote bool
	}{{a, false, false}, {b, false, true}, {b, true, false}} {
		status, answer := post(t, c.at, body)
		var res struct {
			Object  string
			Choices []struct {
				Text   string
				Tokens []int32 `json:"token_ids"`
				Finish string  `json:"finish_reason"`
			}
			Usage struct {
				Prompt     int `json:"prompt_tokens"`
				Completion int `json:"completion_tokens"`
				Details    struct {
					Cached   int `json:"cached_tokens"`
					Hot      int `json:"kvtier_hot_tokens"`
					Remote   int `json:"kvtier_remote_tokens"`
					Computed int `json:"kvtier_computed_tokens"`
				} `json:"prompt_tokens_details"`
			}
			KVTier struct{ Variant, Label string }
		}
		if err := json.Unmarshal([]byte(answer), &res); err != nil || status != http.StatusOK || len(res.Choices) != 1 {
			t.Fatalf("request %d: %d %s", i, status, answer)
		}
		d := res.Usage.Details
		if (d.Hot > 0) != c.hot || (d.Remote > 0) != c.remote || d.Cached != d.Hot+d.Remote || d.Computed+d.Cached != res.Usage.Prompt {
			t.Errorf("request %d: usage %+v", i, res.Usage)
		}
		if len(res.Choices[0].Tokens) != 4 || res.Usage.Completion != 4 || res.Choices[0].Finish != "length" || res.KVTier.Label != v2 {
			t.Errorf("request %d: %s", i, answer)
		}
		texts = append(texts, res.Choices[0].Text)
		flush(t, ra)
	}
	if texts[0] != texts[1] || texts[1] != texts[2] {
		t.Errorf("outputs differ: %q", texts)
	}
	resp, err := a.Client().Get(a.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`kvtier_requests_total{outcome="ok"} 1`, `kvtier_hit_tokens_total{tier="hot"} 0`, `kvtier_resident_info{declared="false",label="` + v2, "kvtier_spilled_blocks_total"} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func TestBadCompletionsAreRefusedByName(t *testing.T) {
	s := serve(t, newReplica(t, v2, nil, nil), worker.HandlerOptions{})
	for name, c := range map[string]struct {
		body, want string
		status     int
	}{
		"no JSON":         {`{"prompt"`, "JSON", 400},
		"empty":           {``, "empty", 400},
		"no prompt":       {`{}`, "prompt is missing", 400},
		"wrong type":      {`{"prompt": 7}`, "prompt is a number", 400},
		"many prompts":    {`{"prompt": ["a"` + strings.Repeat(`,"a"`, 256) + `]}`, "257 prompts", 400},
		"bad prompt":      {`{"prompt": ["a","b",""]}`, "prompt 2 of 3: the prompt is empty", 400},
		"long prompt":     {`{"prompt": [[3],[3,4]],"max_tokens":2047}`, "prompt 1 of 2: This model's maximum context length", 400},
		"unknown field":   {`{"prompt":"a","max_token":5}`, "max_token", 400},
		"other model":     {`{"prompt":"a","model":"gpt"}`, "shakespeare", 404},
		"no stream":       {`{"prompt":"a","stream_options":{"include_usage":true}}`, "stream_options", 400},
		"choices":         {`{"prompt":"a","n":17}`, `"n"`, 400},
		"no choice":       {`{"prompt":"a","n":0}`, `"n"`, 400},
		"stop":            {`{"prompt":"a","stop":7}`, "stop is a number", 400},
		"empty stop":      {`{"prompt":"a","stop":[""]}`, `"stop"`, 400},
		"many stops":      {`{"prompt":"a","stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"]}`, `"stop"`, 400},
		"logprobs":        {`{"prompt":"a","logprobs":6}`, `"logprobs"`, 400},
		"reasons":         {`{"prompt":"a","repetition_penalty":1.1}`, `"repetition_penalty"`, 400},
		"likeliest":       {`{"prompt":"a","top_k":40}`, `"top_k"`, 400},
		"at least":        {`{"prompt":"a","min_tokens":17}`, "min_tokens is 17, more than the 16", 400},
		"less than none":  {`{"prompt":"a","min_tokens":-1}`, "min_tokens is -1", 400},
		"best of":         {`{"prompt":"a","best_of":3}`, `"best_of"`, 400},
		"suffix":          {`{"prompt":"a","suffix":"z"}`, `"suffix"`, 400},
		"bias":            {`{"prompt":"a","logit_bias":{"5":1}}`, `"logit_bias"`, 400},
		"penalty":         {`{"prompt":"a","presence_penalty":1}`, `"presence_penalty"`, 400},
		"temperature":     {`{"prompt":"a","temperature":-1}`, `"temperature"`, 400},
		"rest of context": {`{"prompt":"a","max_tokens":-9223372036854775808}`, `"max_tokens"`, 400},
		"invalid UTF-8":   {"{\"prompt\":\"a\xff\"}", "invalid_utf8", 400},
		"NUL":             {"{\"prompt\":\"a\x00\"}", "JSON", 400},
		"no object":       {`[]`, "object", 400},
		"too large":       {`{"prompt":"` + strings.Repeat("a", 1<<20) + `"}`, "body_too_large", 413},
		"empty salt":      {`{"prompt":"a","cache_salt":""}`, "cache_salt", 400},
		"top_p":           {`{"prompt":"a","top_p":0}`, "top_p", 400},
		"negative":        {`{"prompt":"a","max_tokens":-1}`, "max_tokens", 400},
		"too long":        {`{"prompt":"a","max_tokens":5000}`, "This model's maximum context length is 2048 tokens. However, you requested 5001 tokens (1 in the prompt, 5000 in the completion)", 400},
		"bad token":       {`{"prompt":[5000]}`, "vocabulary", 400},
		"trailing":        {`{"prompt":"a"} x`, "follows", 400},
	} {
		status, answer := post(t, s, c.body)
		e, ok := httpapi.ParseError(status, []byte(answer))
		if status != c.status || !ok || !strings.Contains(answer, c.want) {
			t.Errorf("%s: %d %s; want %d and an error that mentions %s", name, status, answer, c.status, c.want)
			continue
		}
		if e.Type != httpapi.TypeInvalidRequest {
			t.Errorf("%s: type %s", name, e.Type)
		}
	}
	if status, answer := post(t, s, `{"prompt":"a","user":"u","n":1,"stream":false,"max_tokens":0,"prompt_cache_key":"k","top_k":-1,"min_p":0,"repetition_penalty":1.0,
		"logit_bias":{},"frequency_penalty":0,"presence_penalty":0,"best_of":1,"suffix":"","stop_token_ids":[],"skip_special_tokens":true,"use_beam_search":false,"min_tokens":0,"ignore_eos":false}`); status != 200 {
		t.Errorf("harmless fields: %d %s", status, answer)
	}
}

// Every route but the two probes asks for the token.
func TestRoutesAskForTheToken(t *testing.T) {
	r := newReplica(t, v2, nil, nil)
	s := serve(t, r, worker.HandlerOptions{Token: "secret", Degraded: func() []string { return []string{"redis: unavailable"} }})
	get := func(method, path, token string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(`{"prompt":"a","max_tokens":1}`))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for _, route := range []string{"POST /v1/completions", "GET /v1/models", "POST /v1/weights", "GET /metrics", "GET /nowhere"} {
		method, path, _ := strings.Cut(route, " ")
		for token, ok := range map[string]bool{"": false, "wrong": false, "secret": true} {
			if status, _ := get(method, path, token); (status != http.StatusUnauthorized) != ok {
				t.Errorf("%s with token %q: %d", route, token, status)
			}
		}
	}
	if status, body := get("GET", "/readyz", ""); status != 200 || !strings.Contains(body, "degraded") || !strings.Contains(body, "redis: unavailable") {
		t.Errorf("/readyz: %d %s; want 200 and what is degraded", status, body)
	}
	if status, _ := get("GET", "/healthz", ""); status != 200 {
		t.Errorf("/healthz: %d", status)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, _ := get("GET", "/readyz", ""); status != 503 {
		t.Errorf("/readyz while shutting down: %d", status)
	}
	if status, _ := get("POST", "/v1/completions", "secret"); status != 503 {
		t.Errorf("completion while shutting down: %d", status)
	}
}

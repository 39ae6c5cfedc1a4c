package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/internal/httpapi/openapitest"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
)

// TestDocumentHasEveryRoute: none is missing, none has gone.
func TestDocumentHasEveryRoute(t *testing.T) {
	var served []string
	for _, r := range (&api{}).routes() {
		served = append(served, r.pattern)
	}
	d := openapitest.Load(t, openAPI)
	d.HasRoutes(served)
	d.ListedIn("../docs/API.md")
}

// TestDocumentsHaveOneVersion: both APIs are of one release, and are described in one version of OpenAPI.
func TestDocumentsHaveOneVersion(t *testing.T) {
	other, err := os.ReadFile("../coordinator/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	versions := regexp.MustCompile(`(?m)^(openapi|  version): .*$`)
	ours, theirs := versions.FindAllString(string(openAPI), -1), versions.FindAllString(string(other), -1)
	if len(ours) != 2 || !slices.Equal(ours, theirs) {
		t.Errorf("the worker's document has %q, the coordinator's %q", ours, theirs)
	}
}

// TestAnswersAreAsDescribed holds requests that are accepted and all answers to the document.
func TestAnswersAreAsDescribed(t *testing.T) {
	e := enginetest.Tiny(t, 1)
	cache, err := tiered.New(tiered.Options{Layout: e.Layout(), HotBytes: 1 << 20, Remote: memstore.New(memstore.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReplica(Options{Engine: e, Label: "tiny", Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
		cache.Close(ctx)
	})
	// What some bodies are answered: a status alone would be the same for another prompt.
	abc, abd := e.Tokenizer().Encode("abc"), e.Tokenizer().Encode("abd")
	both, err := json.Marshal([][]int32{abc, e.Tokenizer().Encode("d")})
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]string{
		`{"prompt":"abc","max_tokens":3}`: fmt.Sprintf(`"prompt_tokens":%d,`, len(abc)),
		`{"prompt":["abc"],"max_tokens":3,"echo":true,"stop":"q","best_of":1,"user":"u","prompt_cache_key":"k"}`:                       `"text":"abc`,
		`{"prompt":["abc","abd"],"max_tokens":3,"ignore_eos":true,"min_tokens":3,"top_k":-1,"repetition_penalty":1.0,"logit_bias":{}}`: fmt.Sprintf(`"prompt_tokens":%d,"completion_tokens":6,`, len(abc)+len(abd)),
		`{"prompt":[[3,4,5],[6,7]],"max_tokens":0,"echo":true,"logprobs":1}`:                                                           `"prompt_tokens":5,"completion_tokens":0,`,
		`{"prompts":["abc","d"]}`: `"tokens":` + string(both),
		`{"prompt":"abc"}`:        fmt.Sprintf(`"tokens":%d,`, len(abc)),
	}
	plain := Handler(r, HandlerOptions{Model: "org/tiny", Token: "secret"})
	h := openapitest.Load(t, openAPI).Check(plain)
	for _, c := range []struct {
		route, body string
		want        int
	}{
		{"POST /v1/completions", `{"prompt":"abc","max_tokens":3}`, 200},
		{"POST /v1/completions", `{"model":"org/tiny","prompt":[3,4,5],"max_tokens":3,"n":2,"logprobs":2,"stop":["zzz"],"seed":-3,"temperature":0.5,"top_p":0.9,"cache_salt":"a"}`, 200},
		{"POST /v1/completions", `{"prompt":["abc"],"max_tokens":3,"echo":true,"stop":"q","best_of":1,"user":"u","prompt_cache_key":"k"}`, 200},
		{"POST /v1/completions", `{"prompt":"abc","max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}`, 200},
		{"POST /v1/completions", `{"prompt":["abc","abd"],"max_tokens":3,"ignore_eos":true,"min_tokens":3,"top_k":-1,"repetition_penalty":1.0,"logit_bias":{}}`, 200},
		{"POST /v1/completions", `{"prompt":[[3,4,5],[6,7]],"max_tokens":0,"echo":true,"logprobs":1}`, 200},
		{"POST /v1/completions", `{"prompt":"abc","top_k":3}`, 400},
		{"POST /v1/completions", `{"prompt":"abc","model":"gpt"}`, 404},
		{"POST /v1/completions", `{"prompt":"` + strings.Repeat("a", maxBody) + `"}`, 413},
		{"POST /v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"max_tokens":3}`, 200},
		{"POST /v1/chat/completions", `{"messages":[{"role":"developer","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":null},{"role":"user","name":"Kate","content":"b"}],"max_completion_tokens":2,"logprobs":true,"top_logprobs":2,"n":2,"response_format":{"type":"text"},"parallel_tool_calls":true,"prediction":{"type":"content","content":"a"},"reasoning_effort":"none","verbosity":"medium","tool_choice":"auto","tools":[]}`, 200},
		{"POST /v1/chat/completions", `{"messages":[]}`, 400},
		{"GET /v1/models", "", 200},
		{"GET /v1/models/org%2Ftiny", "", 200},
		{"GET /v1/models/other", "", 404},
		{"GET /v1/warm", "", 200},
		{"POST /v1/warm", `{"prompt":"` + strings.Repeat("abc ", 20) + `"}`, 200},
		{"POST /v1/warm", `{"tokens":[3,4,5],"names":true,"cache_salt":"a"}`, 200},
		{"POST /v1/warm", `{"prompt":"` + strings.Repeat("abc ", 20) + `","measure":true}`, 200},
		{"POST /v1/warm", `{"prompt":"` + strings.Repeat("abc ", 20) + `","variant":"bbbbbbbbbbbbbbbb"}`, 409},
		{"POST /v1/warm", `{}`, 400},
		{"POST /v1/warm/tokens", `{"prompts":["abc","d"]}`, 200},
		{"POST /v1/warm/tokens", `{"conversations":[[{"role":"user","content":"a"}]]}`, 200},
		{"POST /v1/warm/tokens", `{}`, 400},
		{"POST /v1/explain", `{"prompt":"abc"}`, 200},
		{"POST /v1/weights", `{"checkpoint":"x"}`, 501},
		{"GET /openapi.yaml", "", 200},
		{"GET /health", "", 200},
		{"GET /healthz", "", 200},
		{"GET /readyz", "", 200},
		{"GET /metrics", "", 200},
	} {
		method, path, _ := strings.Cut(c.route, " ")
		req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(c.body))
		req.Header.Set("Authorization", "Bearer secret")
		if c.body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		if rec.Code != c.want {
			t.Errorf("%s %.100s: %d %s, want %d", c.route, c.body, rec.Code, rec.Body, c.want)
		}
		if says := answers[c.body]; says != "" && !strings.Contains(rec.Body.String(), says) {
			t.Errorf("%s %.100s: %s, want it to say %s", c.route, c.body, rec.Body, says)
		}
	}
	// A slash in the name of a model needs no escape, which the document cannot say.
	req := httptest.NewRequestWithContext(t.Context(), "GET", "/v1/models/org/tiny", nil)
	req.Header.Set("Authorization", "Bearer secret")
	rec := httptest.NewRecorder()
	if plain.ServeHTTP(rec, req); rec.Code != 200 {
		t.Errorf("%s: %d %s", req.URL.Path, rec.Code, rec.Body)
	}
	if missed := h.Missed(); len(missed) > 0 {
		t.Errorf("not called: %q", missed)
	}
}

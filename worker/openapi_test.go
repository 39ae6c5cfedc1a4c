package worker

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
)

func described(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestDocumentHasEveryRoute: none is missing, none has gone.
func TestDocumentHasEveryRoute(t *testing.T) {
	var served, documented []string
	for _, r := range (&api{}).routes() {
		served = append(served, strings.ReplaceAll(r.pattern, "...}", "}"))
	}
	for path, item := range described(t).Paths.Map() {
		for method := range item.Operations() {
			documented = append(documented, method+" "+path)
		}
	}
	slices.Sort(served)
	slices.Sort(documented)
	if !slices.Equal(served, documented) {
		t.Errorf("served:     %q\ndescribed: %q", served, documented)
	}
}

// TestAnswersAreAsDescribed holds requests that are accepted and all answers to the document.
func TestAnswersAreAsDescribed(t *testing.T) {
	e := enginetest.Tiny(t, 1)
	cache, err := tiered.New(tiered.Options{Layout: e.Layout(), HotBytes: 1 << 20})
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
	h := Handler(r, HandlerOptions{Model: "org/tiny", Token: "secret"})
	router, err := gorillamux.NewRouter(described(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		route, body string
		want        int
	}{
		{"POST /v1/completions", `{"prompt":"abc","max_tokens":3}`, 200},
		{"POST /v1/completions", `{"model":"org/tiny","prompt":[3,4,5],"max_tokens":3,"n":2,"logprobs":2,"stop":["zzz"],"seed":-3,"temperature":0.5,"top_p":0.9,"cache_salt":"a"}`, 200},
		{"POST /v1/completions", `{"prompt":["abc"],"max_tokens":3,"echo":true,"stop":"q","best_of":1,"user":"u","prompt_cache_key":"k"}`, 200},
		{"POST /v1/completions", `{"prompt":"abc","max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}`, 200},
		{"POST /v1/completions", `{"prompt":"abc","top_k":3}`, 400},
		{"POST /v1/completions", `{"prompt":"abc","model":"gpt"}`, 404},
		{"POST /v1/completions", `{"prompt":"` + strings.Repeat("a", maxBody) + `"}`, 413},
		{"POST /v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"max_tokens":3}`, 200},
		{"POST /v1/chat/completions", `{"messages":[{"role":"developer","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":null},{"role":"user","name":"Kate","content":"b"}],"max_completion_tokens":2,"logprobs":true,"top_logprobs":2,"n":2,"response_format":{"type":"text"}}`, 200},
		{"POST /v1/chat/completions", `{"messages":[]}`, 400},
		{"GET /v1/models", "", 200},
		{"GET /v1/models/org/tiny", "", 200},
		{"GET /v1/models/other", "", 404},
		{"POST /v1/explain", `{"prompt":"abc"}`, 200},
		{"POST /v1/weights", `{"checkpoint":"x"}`, 501},
		{"GET /openapi.yaml", "", 200},
		{"GET /healthz", "", 200},
		{"GET /readyz", "", 200},
		{"GET /metrics", "", 200},
	} {
		method, path, _ := strings.Cut(c.route, " ")
		build := func() *http.Request {
			req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(c.body))
			req.Header.Set("Authorization", "Bearer secret")
			if c.body != "" {
				req.Header.Set("Content-Type", "application/json")
			}
			return req
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, build())
		if rec.Code != c.want {
			t.Errorf("%s %.100s: %d %s, want %d", c.route, c.body, rec.Code, rec.Body, c.want)
			continue
		}
		req := build()
		if strings.HasPrefix(path, "/v1/models/org") {
			req.URL.Path = "/v1/models/org" // the router knows no parameter of several parts
		}
		found, params, err := router.FindRoute(req)
		if err != nil {
			t.Errorf("%s: %v", c.route, err)
			continue
		}
		o := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true,
			ExcludeResponseBody: !strings.HasPrefix(rec.Header().Get("Content-Type"), "application/json")}
		in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: found, Options: o}
		if err := openapi3filter.ValidateRequest(t.Context(), in); err != nil && rec.Code == http.StatusOK {
			t.Errorf("%s %.200s was accepted, but: %v", c.route, c.body, err)
		}
		if err := openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: in, Status: rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(rec.Body.Bytes())), Options: o,
		}); err != nil {
			t.Errorf("%s answered %d, but: %v\n%s", c.route, rec.Code, err, rec.Body)
		}
	}
}

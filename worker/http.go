package worker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// maxBody bounds a completion request: a context of 128 Ki tokens of 8 characters each fits.
const maxBody = 1 << 20

// HandlerOptions configure the HTTP API of a replica.
type HandlerOptions struct {
	// Model is the name that clients use; a request may leave it out.
	Model string
	// Token, if set, is asked for on every route but /healthz and /readyz.
	Token string
	// Degraded says what is not as it should be while the worker serves all the same, such as "redis unavailable"; nil for nothing.
	Degraded func() []string
	// Registry receives the worker's metrics and serves /metrics; nil makes one.
	Registry *prometheus.Registry
	// RequestTimeout ends a request that takes longer; default 5 minutes.
	RequestTimeout time.Duration
	// Load makes the worker load a checkpoint that a client has named, or makes it known; nil refuses. It must not open anything but what
	// the operator has allowed: the name comes from the network.
	Load func(ctx context.Context, checkpoint string) (Loaded, error)
}

// Handler returns the HTTP API: POST /v1/completions, GET /v1/models, POST /v1/weights, /healthz, /readyz, /metrics.
func Handler(r *Replica, opts HandlerOptions) http.Handler {
	if opts.Registry == nil {
		opts.Registry = prometheus.NewRegistry()
	}
	if opts.Degraded == nil {
		opts.Degraded = func() []string { return nil }
	}
	if opts.RequestTimeout == 0 {
		opts.RequestTimeout = 5 * time.Minute
	}
	opts.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a := &api{replica: r, opts: opts, metrics: newMetrics(opts.Registry, r), started: time.Now()}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/completions", a.completions)
	mux.HandleFunc("GET /v1/models", a.models)
	mux.HandleFunc("POST /v1/weights", a.load)
	a.warmRoutes(mux)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		httpapi.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", a.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(opts.Registry, promhttp.HandlerOpts{}))
	return httpapi.SameOrigin(httpapi.RequireToken(opts.Token, httpapi.LimitBodies(maxBody, mux)))
}

type api struct {
	replica *Replica
	opts    HandlerOptions
	metrics *metrics
	started time.Time
}

// completionRequest is the part of OpenAI's request that the worker honours. Fields that would change the output and are not
// supported are here to be refused by name instead of being ignored.
type completionRequest struct {
	Model       string   `json:"model"`
	Prompt      prompt   `json:"prompt"`
	MaxTokens   *int     `json:"max_tokens"`
	Temperature *float64 `json:"temperature"`
	TopP        *float64 `json:"top_p"`
	Seed        *uint64  `json:"seed"`

	// CacheSalt separates tenants, as in vLLM: K/V is shared only between requests of equal salt.
	CacheSalt *string `json:"cache_salt"`

	PromptCacheKey       string `json:"prompt_cache_key"`       // a routing hint; one worker has nothing to route
	PromptCacheRetention string `json:"prompt_cache_retention"` // accepted, the store's TTL decides
	User                 string `json:"user"`

	N      *int  `json:"n"`
	BestOf *int  `json:"best_of"`
	Stream *bool `json:"stream"`
	Echo   *bool `json:"echo"`
	// The remaining ones are refused unless they are null or what they would be by default.
	Stop             any      `json:"stop"`
	Logprobs         any      `json:"logprobs"`
	LogitBias        any      `json:"logit_bias"`
	Suffix           any      `json:"suffix"`
	FrequencyPenalty *float64 `json:"frequency_penalty"`
	PresencePenalty  *float64 `json:"presence_penalty"`
}

// prompt is a text or a list of token ids.
type prompt struct {
	text   string
	tokens []int32
	set    bool
}

func (p *prompt) UnmarshalJSON(b []byte) error {
	p.set = true
	if json.Unmarshal(b, &p.text) == nil {
		return nil
	}
	if json.Unmarshal(b, &p.tokens) == nil {
		return nil
	}
	return httpapi.BadRequest("invalid_type", "prompt", "prompt is neither a string nor an array of token ids; several prompts are several requests")
}

func (q *completionRequest) request(model string) (Request, error) {
	if q.Model != "" && q.Model != model {
		return Request{}, &httpapi.Error{Status: http.StatusNotFound, Type: httpapi.TypeInvalidRequest, Code: "model_not_found", Param: "model",
			Message: fmt.Sprintf("this worker serves %s, not %.100q", model, q.Model)}
	}
	if !q.Prompt.set {
		return Request{}, httpapi.BadRequest("missing_field", "prompt", "prompt is missing")
	}
	for name, refused := range map[string]bool{
		"stream": q.Stream != nil && *q.Stream, "echo": q.Echo != nil && *q.Echo,
		"n": q.N != nil && *q.N != 1, "best_of": q.BestOf != nil && *q.BestOf != 1,
		"stop": q.Stop != nil, "logprobs": q.Logprobs != nil, "logit_bias": q.LogitBias != nil, "suffix": q.Suffix != nil,
		"frequency_penalty": q.FrequencyPenalty != nil && *q.FrequencyPenalty != 0,
		"presence_penalty":  q.PresencePenalty != nil && *q.PresencePenalty != 0,
	} {
		if refused {
			return Request{}, httpapi.BadRequest("unsupported_parameter", name, name+" is not supported: leave it out")
		}
	}
	if q.CacheSalt != nil && *q.CacheSalt == "" {
		return Request{}, httpapi.BadRequest("invalid_value", "cache_salt", "cache_salt is empty: leave it out or name the tenant")
	}
	req := Request{Prompt: q.Prompt.text, Tokens: q.Prompt.tokens, MaxTokens: 16, Temperature: 1, TopP: 1}
	set(&req.MaxTokens, q.MaxTokens)
	set(&req.Temperature, q.Temperature)
	set(&req.TopP, q.TopP)
	set(&req.Salt, q.CacheSalt)
	if q.Seed != nil {
		req.Seed = *q.Seed
	} else {
		req.Seed = randomSeed()
	}
	if req.TopP <= 0 || req.TopP > 1 {
		return Request{}, httpapi.BadRequest("invalid_value", "top_p", fmt.Sprintf("top_p is %v, want more than 0 and at most 1", req.TopP))
	}
	return req, nil
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

func randomSeed() (seed uint64) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	for _, x := range b {
		seed = seed<<8 | uint64(x)
	}
	return seed
}

type completionResponse struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []completionChoice `json:"choices"`
	Usage   completionUsage    `json:"usage"`
	KVTier  kvtierDetails      `json:"kvtier"`
}

type completionChoice struct {
	Index        int     `json:"index"`
	Text         string  `json:"text"`
	TokenIDs     []int32 `json:"token_ids"`
	FinishReason string  `json:"finish_reason"`
	Logprobs     any     `json:"logprobs"`
}

type completionUsage struct {
	PromptTokens     int           `json:"prompt_tokens"`
	CompletionTokens int           `json:"completion_tokens"`
	TotalTokens      int           `json:"total_tokens"`
	Details          promptDetails `json:"prompt_tokens_details"`
}

// promptDetails splits OpenAI's cached_tokens by tier.
type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
	Hot          int `json:"kvtier_hot_tokens"`
	Remote       int `json:"kvtier_remote_tokens"`
	Computed     int `json:"kvtier_computed_tokens"`
}

// kvtierDetails says which weights answered, and why what was computed was not in the cache.
type kvtierDetails struct {
	Variant  string  `json:"variant"`
	Weights  string  `json:"weights"`
	Label    string  `json:"label"`
	Epoch    uint64  `json:"epoch"`
	Miss     string  `json:"miss"`
	Degraded bool    `json:"degraded"`
	TTFTms   float64 `json:"ttft_ms"`
}

func (a *api) completions(w http.ResponseWriter, r *http.Request) {
	var body completionRequest
	if err := httpapi.ReadJSON(w, r, maxBody, &body); err != nil {
		a.fail(w, err)
		return
	}
	req, err := body.request(a.opts.Model)
	if err != nil {
		a.fail(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.opts.RequestTimeout)
	defer cancel()
	res, err := a.replica.Complete(ctx, req)
	if err != nil {
		a.fail(w, err)
		return
	}
	a.metrics.completed(res)
	httpapi.WriteJSON(w, http.StatusOK, completionResponse{
		ID: "cmpl-" + rand.Text(), Object: "text_completion", Created: time.Now().Unix(), Model: a.opts.Model,
		Choices: []completionChoice{{Text: res.Text, TokenIDs: append([]int32{}, res.Tokens...), FinishReason: res.FinishReason}},
		Usage: completionUsage{
			PromptTokens: res.PromptTokens, CompletionTokens: len(res.Tokens), TotalTokens: res.PromptTokens + len(res.Tokens),
			Details: promptDetails{CachedTokens: res.CachedTokens(), Hot: res.HotTokens, Remote: res.RemoteTokens, Computed: res.ComputedTokens},
		},
		KVTier: kvtierDetails{
			Variant: res.Identity.Variant().String(), Weights: res.Identity.Weights.String(), Label: res.Label, Epoch: uint64(res.Epoch),
			Miss: res.Miss.String(), Degraded: res.Miss.Degraded(), TTFTms: float64(res.TTFT.Microseconds()) / 1000,
		},
	})
}

// fail answers with the status that an error deserves.
func (a *api) fail(w http.ResponseWriter, err error) {
	outcome := "error"
	switch e, ok := errors.AsType[*httpapi.Error](err); {
	case ok:
		outcome = "refused"
		err = e
	case errors.Is(err, ErrRequest):
		outcome = "refused"
		err = httpapi.BadRequest("invalid_request", "", err.Error())
	case errors.Is(err, ErrClosed):
		err = &httpapi.Error{Status: http.StatusServiceUnavailable, Type: httpapi.TypeServer, Code: "shutting_down", Message: "the worker is shutting down"}
	case errors.Is(err, context.DeadlineExceeded):
		outcome = "timeout"
		err = &httpapi.Error{Status: http.StatusGatewayTimeout, Type: httpapi.TypeServer, Code: "timeout", Message: "the request took too long"}
	case errors.Is(err, context.Canceled):
		outcome = "cancelled" // nobody reads the answer
	}
	a.metrics.requests.WithLabelValues(outcome).Inc()
	httpapi.WriteError(w, err)
}

func (a *api) models(w http.ResponseWriter, _ *http.Request) {
	e, label := a.replica.Resident()
	type model struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"`
		OwnedBy string `json:"owned_by"`
		Label   string `json:"kvtier_label"`
		Variant string `json:"kvtier_variant"`
		Context int    `json:"kvtier_context_tokens"`
	}
	httpapi.WriteJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []model{{
		ID: a.opts.Model, Object: "model", Created: a.started.Unix(), OwnedBy: "kvtier", Label: label,
		Variant: e.Identity().Variant().String(), Context: e.ContextTokens(),
	}}})
}

// ready answers 200 as long as requests are answered: a cache is optional, so a sick Redis is reported, not an outage.
func (a *api) ready(w http.ResponseWriter, _ *http.Request) {
	if a.replica.Closing() {
		httpapi.WriteJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "shutting down"})
		return
	}
	why := a.opts.Degraded()
	status := "ready"
	if len(why) > 0 {
		status = "degraded"
	}
	httpapi.WriteJSON(w, http.StatusOK, map[string]any{"status": status, "degraded": append([]string{}, why...)})
}

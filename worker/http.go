package worker

import (
	"context"
	_ "embed"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/worker/engine"
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
	// WriteTimeout cuts off a client that takes longer to read a piece of its answer; default 30 s.
	WriteTimeout time.Duration
	// ChatTemplate is a Jinja template, or PlainTemplate, in place of the model's own; "" for that, or the plain one if it has none.
	ChatTemplate string
	// Load makes the worker load a checkpoint that a client has named, or makes it known; nil refuses. It must not open anything but what
	// the operator has allowed: the name comes from the network.
	Load func(ctx context.Context, checkpoint string) (Loaded, error)
}

// Handler returns the HTTP API, which openapi.yaml describes.
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
	if opts.WriteTimeout == 0 {
		opts.WriteTimeout = 30 * time.Second
	}
	opts.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a := &api{replica: r, opts: opts, metrics: newMetrics(opts.Registry, r), started: time.Now()}
	mux := http.NewServeMux()
	for _, route := range a.routes() {
		mux.HandleFunc(route.pattern, route.serve)
	}
	return httpapi.Handler(mux, httpapi.Options{Token: opts.Token, BodyBytes: maxBody, Logger: r.opts.Logger})
}

type api struct {
	replica   *Replica
	opts      HandlerOptions
	metrics   *metrics
	templates templates
	started   time.Time
}

type route struct {
	pattern string
	serve   http.HandlerFunc
}

// routes are described in openapi.yaml; a test holds the two together.
func (a *api) routes() []route {
	return []route{
		{"POST /v1/completions", a.completions},
		{"POST /v1/chat/completions", a.chat},
		{"GET /v1/models", a.models},
		{"GET /v1/models/{id...}", a.model},
		{"POST /v1/weights", a.load},
		{"POST /v1/explain", a.explain},
		{"GET /v1/warm", a.warmInfo},
		{"POST /v1/warm", a.warm},
		{"POST /v1/warm/tokens", a.tokens},
		{"GET /openapi.yaml", document},
		{"GET /health", a.ready}, // vLLM's, which benchmarks wait for
		{"GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
			httpapi.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
		}},
		{"GET /readyz", a.ready},
		{"GET /metrics", promhttp.HandlerFor(a.opts.Registry, promhttp.HandlerOpts{}).ServeHTTP},
	}
}

//go:embed openapi.yaml
var openAPI []byte

func document(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(openAPI)
}

// fail answers a request that did not get as far as the replica.
func (a *api) fail(w http.ResponseWriter, err error) {
	a.metrics.answered(Result{}, err)
	a.writeError(w, err)
}

func (a *api) writeError(w http.ResponseWriter, err error) {
	if busy, ok := errors.AsType[*BusyError](err); ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(busy.RetryAfter/time.Second)))
	} else if errors.Is(err, ErrClosed) {
		w.Header().Set("Retry-After", "1") // of another worker, at once
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(a.opts.WriteTimeout))
	httpapi.WriteError(w, apiError(err))
}

// apiError is what clients are told of an error.
func apiError(err error) *httpapi.Error {
	if e, ok := errors.AsType[*httpapi.Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*RequestError](err); ok {
		return httpapi.BadRequest(e.Code, e.Param, e.Message)
	}
	server := func(status int, code, message string) *httpapi.Error {
		return &httpapi.Error{Status: status, Type: httpapi.TypeServer, Code: code, Message: message}
	}
	switch {
	case errors.Is(err, ErrBusy):
		return &httpapi.Error{Status: http.StatusTooManyRequests, Type: "rate_limit_error", Code: "too_many_requests", Message: err.Error()}
	case errors.Is(err, ErrClosed):
		return server(http.StatusServiceUnavailable, "shutting_down", "the worker is shutting down: ask another one, or this one again when it is back")
	case errors.Is(err, errExchanged):
		return server(http.StatusServiceUnavailable, "weights_exchanged", err.Error())
	case errors.Is(err, engine.ErrUnavailable):
		return server(http.StatusBadGateway, "engine_unavailable", err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return server(http.StatusGatewayTimeout, "timeout", "the request took too long")
	}
	return server(http.StatusInternalServerError, "internal_error", err.Error())
}

// outcome is the label under which a request is counted.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	switch e := apiError(err); {
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case e.Status == http.StatusTooManyRequests:
		return "busy"
	case e.Status == http.StatusGatewayTimeout:
		return "timeout"
	case e.Status < http.StatusInternalServerError, e.Status == http.StatusNotImplemented:
		return "refused"
	}
	return "error"
}

type modelInfo struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
	Label   string `json:"kvtier_label"`
	Variant string `json:"kvtier_variant"`
	Context int    `json:"kvtier_context_tokens"`
}

func (a *api) info() modelInfo {
	e, label := a.replica.Resident()
	return modelInfo{
		ID: a.opts.Model, Object: "model", Created: a.started.Unix(), OwnedBy: "kvtier", Label: label,
		Variant: e.Identity().Variant().String(), Context: e.ContextTokens(),
	}
}

func (a *api) models(w http.ResponseWriter, _ *http.Request) {
	httpapi.WriteJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []modelInfo{a.info()}})
}

func (a *api) model(w http.ResponseWriter, r *http.Request) {
	if id := r.PathValue("id"); id != a.opts.Model {
		httpapi.WriteError(w, unknownModel(id, a.opts.Model))
		return
	}
	httpapi.WriteJSON(w, http.StatusOK, a.info())
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

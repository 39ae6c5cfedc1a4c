package coordinator

import (
	"context"
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/httpapi"
)

// RegisterRequest is the body of POST /v1/models/{name}/versions.
type RegisterRequest struct {
	Label   string `json:"label"`   // optional; default the first digits of the weights digest
	Weights string `json:"weights"` // 64 hex digits
	Layout  string `json:"layout"`  // 64 hex digits
}

// VersionRequest is the body of POST /v1/models/{name}/activate, purge, drain and revoke.
type VersionRequest struct {
	// Version is a label, a weights digest or at least its first 8 digits, or a variant. Purge takes none for the whole model.
	Version string `json:"version"`
	Keep    bool   `json:"keep"` // activate only: leave other weights active
}

// ModelList is the answer to GET /v1/models.
type ModelList struct {
	Models []string `json:"models"`
}

// Handler serves the HTTP API. With a token every route but /healthz and /readyz asks for it.
func (c *Coordinator) Handler(token string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		httpapi.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := c.Ready(); err != nil {
			httpapi.WriteError(w, unavailable("not_ready", err.Error()))
			return
		}
		httpapi.WriteJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/models", answer(func(r *http.Request) (any, error) {
		names, err := c.Models(r.Context())
		if names == nil {
			names = []string{}
		}
		return ModelList{names}, err
	}))
	mux.HandleFunc("GET /v1/models/{name}", answer(func(r *http.Request) (any, error) {
		return c.Status(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/models/{name}/versions", func(w http.ResponseWriter, r *http.Request) {
		var req RegisterRequest
		if err := httpapi.ReadJSON(w, r, 0, &req); err != nil {
			httpapi.WriteError(w, err)
			return
		}
		answer(func(r *http.Request) (any, error) {
			id, err := req.identity()
			if err != nil {
				return nil, err
			}
			return c.Register(r.Context(), r.PathValue("name"), id, req.Label)
		})(w, r)
	})
	change := func(path string, optional bool, do func(context.Context, string, VersionRequest) (Result, error)) {
		read := httpapi.ReadJSON
		if optional {
			read = httpapi.ReadOptionalJSON
		}
		mux.HandleFunc("POST /v1/models/{name}/"+path, func(w http.ResponseWriter, r *http.Request) {
			var req VersionRequest
			if err := read(w, r, 0, &req); err != nil {
				httpapi.WriteError(w, err)
				return
			}
			if req.Keep && path != "activate" {
				httpapi.WriteError(w, httpapi.BadRequest("invalid_request", "keep", "keep goes with activate only"))
				return
			}
			answer(func(r *http.Request) (any, error) { return do(r.Context(), r.PathValue("name"), req) })(w, r)
		})
	}
	change("activate", false, func(ctx context.Context, m string, q VersionRequest) (Result, error) {
		return c.Activate(ctx, m, q.Version, q.Keep)
	})
	change("purge", true, func(ctx context.Context, m string, q VersionRequest) (Result, error) {
		return c.Purge(ctx, m, q.Version)
	})
	change("drain", false, func(ctx context.Context, m string, q VersionRequest) (Result, error) {
		return c.Drain(ctx, m, q.Version)
	})
	change("revoke", false, func(ctx context.Context, m string, q VersionRequest) (Result, error) {
		return c.Revoke(ctx, m, q.Version)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		httpapi.WriteError(w, &httpapi.Error{
			Status: http.StatusNotFound, Type: httpapi.TypeInvalidRequest, Code: "unknown_route",
			Message: "there is no " + r.Method + " " + r.URL.Path,
		})
	})
	return httpapi.SameOrigin(httpapi.RequireToken(token, mux))
}

func (q RegisterRequest) identity() (block.Identity, error) {
	var id block.Identity
	if err := id.Weights.UnmarshalText([]byte(q.Weights)); err != nil {
		return id, httpapi.BadRequest("invalid_digest", "weights", "weights: "+err.Error())
	}
	if err := id.Layout.UnmarshalText([]byte(q.Layout)); err != nil {
		return id, httpapi.BadRequest("invalid_digest", "layout", "layout: "+err.Error())
	}
	return id, nil
}

// answer makes a handler of a function that returns what to say.
func answer(fn func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(r)
		if err != nil {
			httpapi.WriteError(w, apiError(err))
			return
		}
		httpapi.WriteJSON(w, http.StatusOK, v)
	}
}

// errorCode ties a sentinel to what goes over the wire; the client goes the same way back.
type errorCode struct {
	err    error
	status int
	code   string
}

func errorCodes() []errorCode {
	return []errorCode{
		{ErrInvalid, http.StatusBadRequest, "invalid_request"},
		{ErrNoModel, http.StatusNotFound, "model_not_found"},
		{ErrNoVersion, http.StatusNotFound, "version_not_found"},
		{ErrAmbiguous, http.StatusConflict, "version_ambiguous"},
		{ErrTooMany, http.StatusConflict, "too_many_versions"},
		{ErrConflict, http.StatusServiceUnavailable, "conflict"},
		{ErrRecord, http.StatusInternalServerError, "record_damaged"},
		{ErrExhausted, http.StatusInternalServerError, "numbers_exhausted"},
	}
}

func apiError(err error) error {
	if _, ok := errors.AsType[*httpapi.Error](err); ok {
		return err
	}
	for _, m := range errorCodes() {
		if errors.Is(err, m.err) {
			typ := httpapi.TypeInvalidRequest
			if m.status >= http.StatusInternalServerError {
				typ = httpapi.TypeServer
			}
			return &httpapi.Error{Status: m.status, Message: err.Error(), Type: typ, Code: m.code}
		}
	}
	return unavailable("redis_unavailable", err.Error()) // everything else comes from Redis
}

func unavailable(code, message string) *httpapi.Error {
	return &httpapi.Error{Status: http.StatusServiceUnavailable, Message: message, Type: httpapi.TypeServer, Code: code}
}

package coordinator

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed" // openapi.yaml
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/httpapi"
)

//go:embed openapi.yaml
var openAPI []byte

// RegisterRequest is the body of POST /v1/models/{name}/versions.
type RegisterRequest struct {
	Label   string `json:"label"`             // optional; default the first digits of the weights digest
	Weights string `json:"weights,omitempty"` // 64 hex digits
	Layout  string `json:"layout"`            // 64 hex digits
	// Declared takes the place of Weights where nobody can read the weights' bytes: words of the operator's own, whose SHA-256 identifies
	// them. That two workers with equal words have equal weights is then the operator's promise, and shown as such everywhere.
	Declared string `json:"declared,omitempty"`
	Activate bool   `json:"activate,omitempty"` // make these weights active in the same step, and revoke others
	Keep     bool   `json:"keep,omitempty"`     // with activate: leave others active
}

// VersionRequest is the body of POST /v1/models/{name}/warm, drain and revoke.
type VersionRequest struct {
	// Version is a label, a weights digest or at least its first 8 digits, or a variant.
	Version string `json:"version"`
}

// ActivateRequest is the body of POST /v1/models/{name}/activate.
type ActivateRequest struct {
	Version string `json:"version"`
	Keep    bool   `json:"keep,omitempty"` // leave other weights active
}

// purgeRequest is the body of POST /v1/models/{name}/purge. No body and {} purge the whole model; a field that is there says what.
type purgeRequest struct {
	Version name `json:"version"`
	Tenant  name `json:"tenant"` // namespace digest of one tenant (block.Namespace), 64 hex digits
}

// purge carries it out.
func (q purgeRequest) purge(ctx context.Context, c *Coordinator, model string) (Result, error) {
	if err := cmp.Or(q.Version.check("version"), q.Tenant.check("tenant")); err != nil {
		return Result{}, err
	}
	switch {
	case q.Version.given && q.Tenant.given:
		return Result{}, httpapi.BadRequest("invalid_request", "tenant", "a purge is of a version or of a tenant, not of both")
	case q.Version.given:
		return c.Purge(ctx, model, q.Version.value)
	case !q.Tenant.given:
		return c.Purge(ctx, model, AllVersions)
	}
	ns, err := digest("tenant", q.Tenant.value)
	if err != nil {
		return Result{}, err
	}
	return c.PurgeTenant(ctx, model, ns)
}

// ModelList is the answer to GET /v1/models.
type ModelList struct {
	Models []string `json:"models"`
}

// route is one path of the API with its method.
type route struct {
	pattern string
	handler http.Handler
}

// Handler serves the HTTP API that GET /openapi.yaml describes. With a token every route but /healthz and /readyz asks for it.
func (c *Coordinator) Handler(token string) http.Handler {
	mux := http.NewServeMux()
	for _, r := range c.routes() {
		mux.Handle(r.pattern, r.handler)
	}
	return httpapi.Handler(mux, httpapi.Options{Token: token, Logger: c.opt.Logger, Path: modelPath})
}

func (c *Coordinator) routes() []route {
	get := func(fn func(*http.Request) (any, error)) http.Handler { return answer(fn) }
	return slices.Concat(c.modelRoutes(get), c.warmupRoutes(), c.pinRoutes())
}

func (c *Coordinator) modelRoutes(get func(func(*http.Request) (any, error)) http.Handler) []route {
	return []route{
		{"GET /healthz", get(func(*http.Request) (any, error) { return map[string]string{"status": "ok"}, nil })},
		{"GET /readyz", get(func(*http.Request) (any, error) {
			if err := c.Ready(); err != nil {
				return nil, unavailable("not_ready", err.Error())
			}
			return map[string]string{"status": "ready"}, nil
		})},
		{"GET /metrics", promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{})},
		{"GET /openapi.yaml", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/yaml")
			_, _ = w.Write(openAPI)
		})},
		{"GET /v1/models", get(func(r *http.Request) (any, error) {
			names, err := c.Models(r.Context())
			if names == nil {
				names = []string{}
			}
			return ModelList{names}, err
		})},
		{"GET /v1/models/{name}", get(func(r *http.Request) (any, error) { return c.Status(r.Context(), r.PathValue("name")) })},
		{"GET /v1/models/{name}/history", get(func(r *http.Request) (any, error) { return c.History(r.Context(), r.PathValue("name")) })},
		{"POST /v1/models/{name}/versions", body(httpapi.ReadJSON, func(ctx context.Context, model string, q RegisterRequest) (Result, error) {
			reg, err := q.registration()
			if err != nil {
				return Result{}, err
			}
			return c.Add(ctx, model, reg)
		})},
		{"POST /v1/models/{name}/activate", body(httpapi.ReadJSON, func(ctx context.Context, model string, q ActivateRequest) (Result, error) {
			return c.Activate(ctx, model, q.Version, q.Keep)
		})},
		{"POST /v1/models/{name}/purge", body(httpapi.ReadOptionalJSON, func(ctx context.Context, model string, q purgeRequest) (Result, error) {
			return q.purge(ctx, c, model)
		})},
		{"DELETE /v1/models/{name}/tenants/{namespace}", answer(func(r *http.Request) (any, error) {
			ns, err := digest("namespace", r.PathValue("namespace"))
			if err != nil {
				return nil, err
			}
			return c.PurgeTenant(withCaller(r), r.PathValue("name"), ns)
		})},
		{"POST /v1/models/{name}/warm", body(httpapi.ReadJSON, func(ctx context.Context, model string, q VersionRequest) (Result, error) {
			return c.Warm(ctx, model, q.Version)
		})},
		{"POST /v1/models/{name}/drain", body(httpapi.ReadJSON, func(ctx context.Context, model string, q VersionRequest) (Result, error) {
			return c.Drain(ctx, model, q.Version)
		})},
		{"POST /v1/models/{name}/revoke", body(httpapi.ReadJSON, func(ctx context.Context, model string, q VersionRequest) (Result, error) {
			return c.Revoke(ctx, model, q.Version)
		})},
		{"POST /v1/models/{name}/repair", answer(func(r *http.Request) (any, error) { return c.Repair(withCaller(r), r.PathValue("name")) })},
	}
}

// ActorHeader is how a caller names itself for the history.
const ActorHeader = "Kvtier-Actor"

func withCaller(r *http.Request) context.Context {
	return WithActor(r.Context(), r.Header.Get(ActorHeader))
}

// body makes a handler of a change that is described by a JSON body.
func body[Q any](read func(http.ResponseWriter, *http.Request, int64, any) error, do func(context.Context, string, Q) (Result, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := read(w, r, 0, &q); err != nil {
			httpapi.WriteError(w, err)
			return
		}
		answer(func(r *http.Request) (any, error) { return do(withCaller(r), r.PathValue("name"), q) })(w, r)
	})
}

// registration checks what is asked for: the weights digest, or words that stand for it.
func (q RegisterRequest) registration() (reg Registration, err error) {
	reg = Registration{Label: q.Label, Activate: q.Activate, Keep: q.Keep}
	switch {
	case q.Declared != "" && q.Weights != "":
		return reg, httpapi.BadRequest("invalid_request", "declared", "weights are identified by their digest or by a declared string, not by both")
	case len(q.Declared) > maxDeclaredBytes:
		return reg, httpapi.BadRequest("invalid_request", "declared", fmt.Sprintf("declared has %d bytes, at most %d", len(q.Declared), maxDeclaredBytes))
	case q.Declared != "":
		reg.Declared, reg.Identity.Weights = true, DeclaredWeights(q.Declared)
	default:
		if reg.Identity.Weights, err = digest("weights", q.Weights); err != nil {
			return reg, err
		}
	}
	reg.Identity.Layout, err = digest("layout", q.Layout)
	return reg, err
}

const maxDeclaredBytes = 4 << 10

// DeclaredWeights is the digest that stands for weights whose bytes nobody has read: of an operator's own words for them.
func DeclaredWeights(words string) block.Digest { return sha256.Sum256([]byte(words)) }

func digest(field, hex string) (d block.Digest, err error) {
	if err := d.UnmarshalText([]byte(hex)); err != nil {
		return d, httpapi.BadRequest("invalid_digest", field, field+": "+err.Error())
	}
	return d, nil
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
		{ErrManifest, http.StatusRequestEntityTooLarge, "manifest_too_large"},
		{ErrNoJob, http.StatusNotFound, "not_found"},
		{ErrQuota, http.StatusConflict, "quota"},
		{ErrTooMany, http.StatusConflict, "too_many_versions"},
		{ErrState, http.StatusInternalServerError, "state_file"},
		{ErrDeposed, http.StatusServiceUnavailable, "conflict"},
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

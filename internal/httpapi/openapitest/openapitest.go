// Package openapitest holds HTTP servers to their OpenAPI documents, in tests.
package openapitest

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// Document is an OpenAPI document that is valid.
type Document struct {
	t      testing.TB
	doc    *openapi3.T
	router routers.Router
}

// Load reads the text of a document.
func Load(t testing.TB, text []byte) *Document {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &Document{t, doc, router}
}

// Routes returns what is described, such as "GET /v1/models/{id}", in order.
func (d *Document) Routes() []string {
	var all []string
	for path, item := range d.doc.Paths.Map() {
		for method := range item.Operations() {
			all = append(all, method+" "+path)
		}
	}
	slices.Sort(all)
	return all
}

// HasRoutes fails the test unless the document describes what a mux serves: none is missing, none has gone.
func (d *Document) HasRoutes(served []string) {
	d.t.Helper()
	served = slices.Clone(served)
	for i, r := range served {
		served[i] = strings.ReplaceAll(r, "...}", "}") // OpenAPI knows no parameter of several parts
	}
	slices.Sort(served)
	if described := d.Routes(); !slices.Equal(served, described) {
		d.t.Errorf("served:    %q\ndescribed: %q", served, described)
	}
}

// ListedIn fails the test unless a text for people has every route that the document describes, as `GET /v1/models`.
func (d *Document) ListedIn(file string) {
	d.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, r := range d.Routes() {
		if !bytes.Contains(text, []byte("`"+r+"`")) {
			d.t.Errorf("%s does not name `%s`", file, r)
		}
	}
}

// Checked is a handler in front of another one that holds all answers, and the requests that were accepted, to a document.
type Checked struct {
	doc  *Document
	next http.Handler

	mu   sync.Mutex
	seen map[string]bool // by route
}

// Check returns a handler that passes requests on to h.
func (d *Document) Check(h http.Handler) *Checked {
	return &Checked{doc: d, next: h, seen: map[string]bool{}}
}

// Missed returns the routes that were described and not called yet, in order.
func (c *Checked) Missed() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(c.doc.Routes(), func(r string) bool { return c.seen[r] })
}

// ServeHTTP implements http.Handler.
func (c *Checked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sent, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(sent))
	rec := httptest.NewRecorder()
	c.next.ServeHTTP(rec, r)
	r.Body = io.NopCloser(bytes.NewReader(sent))
	c.check(r, rec)
	maps.Copy(w.Header(), rec.Header())
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

func (c *Checked) check(r *http.Request, rec *httptest.ResponseRecorder) {
	t := c.doc.t
	route, params, err := c.doc.router.FindRoute(r)
	if err != nil {
		t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		return
	}
	c.mu.Lock()
	c.seen[route.Method+" "+route.Path] = true
	c.mu.Unlock()
	o := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true,
		ExcludeResponseBody: !strings.HasPrefix(rec.Header().Get("Content-Type"), "application/json")} // the filter reads JSON only; text is text
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route, Options: o}
	if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil && rec.Code == http.StatusOK {
		t.Errorf("%s %s was accepted, but: %v", r.Method, r.URL.Path, err)
	}
	if err := openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(rec.Body.Bytes())), Options: o,
	}); err != nil {
		t.Errorf("%s %s answered %d, but: %v\n%s", r.Method, r.URL.Path, rec.Code, err, rec.Body)
	}
}

package httpapi

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Options are what a server's routes are wrapped in.
type Options struct {
	Token     string // asked for on every route but OpenPaths; "" for none
	BodyBytes int64  // bound of every body; 0 means that handlers have their own
	// Path gives a cleaned and escaped path the form that the routes have; nil: it has it.
	Path   func(escaped string) string
	Logger *slog.Logger // nil discards; see RequestID
}

// Handler makes a server of a mux: every answer has a request id, requests from pages of other sites and without the token are refused, a
// path is cleaned (see Clean), and what no route takes is answered in the shape of every other error. The mux has no route "/".
func Handler(mux *http.ServeMux, opt Options) http.Handler {
	h := routed(mux)
	if opt.BodyBytes > 0 {
		h = LimitBodies(opt.BodyBytes, h)
	}
	return RequestID(opt.Logger, Clean(opt.Path, SameOrigin(RequireToken(opt.Token, h))))
}

// Clean takes a path as it was meant, without a redirect, which clients do not follow for a POST or lose their token with: a base URL that
// ends in a slash makes //v1/models, and /v1/models/ is /v1/models. form, if not nil, has the last word. A path with "." or ".." is not found.
func Clean(form func(escaped string) string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		escaped := r.URL.EscapedPath() // a slash in a name is escaped, and stays
		names := strings.FieldsFunc(escaped, func(c rune) bool { return c == '/' })
		if slices.Contains(names, ".") || slices.Contains(names, "..") {
			WriteError(w, notFound(r))
			return
		}
		clean := "/" + strings.Join(names, "/")
		if form != nil {
			clean = form(clean)
		}
		if clean != escaped && escaped != "*" {
			r = withPath(r, clean)
		}
		next.ServeHTTP(w, r)
	})
}

// withPath is r for another path, which is escaped.
func withPath(r *http.Request, escaped string) *http.Request {
	u := *r.URL
	u.RawPath = escaped
	u.Path, _ = url.PathUnescape(escaped) // of parts of a path that was parsed
	other := *r
	other.URL = &u
	return &other
}

// routed answers what the mux has no route for in the shape of every other error.
func routed(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r) // not h: only the mux sets the path's values
			return
		}
		var said silent
		h.ServeHTTP(&said, r)
		if said.status == http.StatusMethodNotAllowed {
			allow := said.Header().Get("Allow")
			w.Header().Set("Allow", allow)
			WriteError(w, &Error{
				Status: http.StatusMethodNotAllowed, Type: TypeInvalidRequest, Code: "method_not_allowed",
				Message: fmt.Sprintf("%.20s is not for %.200s, which takes %s", r.Method, r.URL.Path, allow),
			})
			return
		}
		e := notFound(r)
		escaped := r.URL.EscapedPath()
		for _, meant := range []string{"/v1" + escaped, strings.TrimPrefix(escaped, "/v1")} { // a base URL without /v1, or with two
			if strings.HasPrefix(meant, "/") && meant != escaped {
				if _, pattern := mux.Handler(withPath(r, meant)); pattern != "" {
					e.Message += "; there is " + meant
					break
				}
			}
		}
		WriteError(w, e)
	})
}

func notFound(r *http.Request) *Error {
	return &Error{
		Status: http.StatusNotFound, Type: TypeInvalidRequest, Code: "unknown_route",
		Message: fmt.Sprintf("there is no %.20s %.200s", r.Method, r.URL.Path),
	}
}

// silent listens to a handler instead of answering.
type silent struct {
	header http.Header
	status int
}

func (s *silent) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}

func (s *silent) WriteHeader(status int)      { s.status = status }
func (s *silent) Write(b []byte) (int, error) { return len(b), nil }

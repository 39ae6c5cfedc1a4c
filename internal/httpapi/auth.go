package httpapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"slices"
	"strings"
)

// OpenPaths need no token: probes have none.
func OpenPaths() []string { return []string{"/health", "/healthz", "/readyz"} }

// RequireToken lets requests through that carry "Authorization: Bearer <token>", and those for OpenPaths; the others get 401. An empty token
// turns the check off. Whatever is compared is compared in constant time.
func RequireToken(token string, next http.Handler) http.Handler {
	if token == "" {
		return next
	}
	want := sha256.Sum256([]byte(token)) // equal lengths: a comparison would tell the token's otherwise
	open := OpenPaths()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(given)))
		ok := subtle.ConstantTimeCompare(got[:], want[:]) == 1 && strings.EqualFold(scheme, "Bearer")
		if ok || slices.Contains(open, r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="kvtier"`)
		WriteError(w, &Error{
			Status: http.StatusUnauthorized, Type: TypeAuthentication, Code: "invalid_token",
			Message: "a valid token is needed: send the header Authorization: Bearer <token>",
		})
	})
}

// SameOrigin refuses requests that a browser sends from another site's page: a server on loopback without a token would
// otherwise obey every page that its user opens.
func SameOrigin(next http.Handler) http.Handler {
	p := http.NewCrossOriginProtection()
	p.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		WriteError(w, &Error{
			Status: http.StatusForbidden, Type: TypeAuthentication, Code: "cross_origin",
			Message: "requests from pages of other sites are refused",
		})
	}))
	return p.Handler(next)
}

package coordinator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/kvtier/kvtier/internal/httpapi"
)

const (
	maxNameBytes  = 64
	maxModelBytes = 128
)

// ValidateModel reports whether name can be a model's name: 1 to 128 of [A-Za-z0-9._/-], as in meta-llama/Llama-3-8B. Between slashes stands
// something that is neither "." nor "..", which a URL's path would swallow, and no word at its end that a route of the API ends with.
func ValidateModel(name string) error {
	if len(name) < 1 || len(name) > maxModelBytes {
		return fmt.Errorf("%w: model name has %d characters, want 1 to %d", ErrInvalid, len(name), maxModelBytes)
	}
	segments := strings.Split(name, "/")
	for _, s := range segments {
		if s == "" || s == "." || s == ".." {
			return fmt.Errorf("%w: model name %q: nothing, \".\" or \"..\" stands between slashes", ErrInvalid, name)
		}
		if !slices.ContainsFunc([]byte(s), func(c byte) bool { return !nameByte(c) }) {
			continue
		}
		return fmt.Errorf("%w: model name %q: only letters, digits, '.', '_', '-' and '/' are allowed", ErrInvalid, name)
	}
	n := len(segments)
	if n > 1 && slices.Contains(actions, segments[n-1]) || n > 2 && slices.Contains(collections, segments[n-2]) {
		return fmt.Errorf("%w: model name %q ends like a route of the API: choose another", ErrInvalid, name)
	}
	return nil
}

// validateName reports whether name can be that of an owner, an incarnation, a job or a pin: 1 to 64 of [A-Za-z0-9._-].
func validateName(what, name string) error {
	if len(name) < 1 || len(name) > maxNameBytes {
		return fmt.Errorf("%w: %s has %d characters, want 1 to %d", ErrInvalid, what, len(name), maxNameBytes)
	}
	if name == "." || name == ".." || slices.ContainsFunc([]byte(name), func(c byte) bool { return !nameByte(c) }) {
		return fmt.Errorf("%w: %s %q: only letters, digits, '.', '_' and '-' are allowed", ErrInvalid, what, name)
	}
	return nil
}

// What follows a model's name in a path: an action, or a collection and the name of a member.
var (
	actions     = []string{"versions", "activate", "purge", "warm", "drain", "revoke", "repair", "history", "pins"}
	collections = []string{"tenants", "pins"}
)

// modelPaths lets names of models stand in paths as they are, slashes included: /v1/models/meta-llama/Llama-3-8B/purge. The routes behind it have
// one segment for a name, where a slash is %2F.
func modelPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const prefix = "/v1/models/"
		rest, ok := strings.CutPrefix(r.URL.EscapedPath(), prefix)
		if !ok || !strings.Contains(rest, "/") {
			next.ServeHTTP(w, r)
			return
		}
		segments, n := strings.Split(rest, "/"), 0
		switch k := len(segments); {
		case slices.Contains(actions, segments[k-1]):
			n = k - 1
		case k > 2 && slices.Contains(collections, segments[k-2]):
			n = k - 2
		default:
			n = k
		}
		escaped := prefix + strings.Join(append([]string{strings.Join(segments[:n], "%2F")}, segments[n:]...), "/")
		path, err := url.PathUnescape(escaped)
		if err != nil || n == 0 {
			next.ServeHTTP(w, r)
			return
		}
		q := r.Clone(r.Context())
		q.URL.Path, q.URL.RawPath = path, escaped
		next.ServeHTTP(w, q)
	})
}

// AllVersions selects every version of a model, where that is meant. An empty selector never does.
const AllVersions = "*"

// name is a field that may be left out, and that says something if it is there: in a call that takes something away, empty must not be read
// as all.
type name struct {
	given bool
	value string
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *name) UnmarshalJSON(b []byte) error {
	n.given = true
	if string(b) == "null" {
		return nil
	}
	if err := json.Unmarshal(b, &n.value); err != nil {
		return httpapi.BadRequest("invalid_type", "", "a version or tenant to purge is a string")
	}
	return nil
}

// check says what is wrong with a field that is there and empty.
func (n name) check(field string) error {
	if n.given && n.value == "" {
		return httpapi.BadRequest("empty_value", field, field+" is empty: name it, or leave it out to purge the whole model")
	}
	return nil
}

package coordinator

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

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

// modelPath lets names of models stand in paths as they are, slashes included: /v1/models/meta-llama/Llama-3-8B/purge. The routes have one
// segment for a name, where a slash is %2F.
func modelPath(escaped string) string {
	const prefix = "/v1/models/"
	rest, ok := strings.CutPrefix(escaped, prefix)
	if !ok {
		return escaped
	}
	segments := strings.Split(rest, "/")
	n := len(segments)
	switch {
	case slices.Contains(actions, segments[n-1]):
		n--
	case n > 2 && slices.Contains(collections, segments[n-2]):
		n -= 2
	}
	if n < 2 {
		return escaped
	}
	return prefix + strings.Join(append([]string{strings.Join(segments[:n], "%2F")}, segments[n:]...), "/")
}

// AllVersions selects every version of a model, where that is meant. An empty selector never does.
const AllVersions = "*"

// name is a field that may be left out, and that says something if it is there: in a call that takes something away, empty must not be read
// as all.
type name struct {
	given bool
	value string
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (n *name) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	n.given = true
	if dec.PeekKind() == jsontext.KindNull {
		return dec.SkipValue()
	}
	return json.UnmarshalDecode(dec, &n.value)
}

// check says what is wrong with a field that is there and empty.
func (n name) check(field string) error {
	if n.given && n.value == "" {
		return httpapi.BadRequest("empty_value", field, field+" is empty: name it, or leave it out to purge the whole model")
	}
	return nil
}

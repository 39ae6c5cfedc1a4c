package httpapi

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// DefaultBodyBytes is enough for every administrative request.
const DefaultBodyBytes = 64 << 10

// WriteJSON answers with v. What cannot be encoded is a programmer's error and becomes a 500.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, `{"error":{"message":"the answer cannot be encoded","type":"server_error","code":"internal_error"}}`,
			http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client is gone if this fails
}

// ReadJSON decodes the body, of at most limit bytes (0 means DefaultBodyBytes), into dst. It accepts exactly one JSON value with known fields.
// The error is an *Error that names the field at fault. An empty body is an error; see ReadOptionalJSON.
func ReadJSON(w http.ResponseWriter, r *http.Request, limit int64, dst any) error {
	return readJSON(w, r, limit, dst, false)
}

// ReadOptionalJSON is ReadJSON for requests whose body may be empty: dst then keeps its value.
func ReadOptionalJSON(w http.ResponseWriter, r *http.Request, limit int64, dst any) error {
	return readJSON(w, r, limit, dst, true)
}

func readJSON(w http.ResponseWriter, r *http.Request, limit int64, dst any, optional bool) error {
	if limit <= 0 {
		limit = DefaultBodyBytes
	}
	// curl -d announces a form: take it, since it cannot be one. Anything else that is announced is a mistake.
	if ct := r.Header.Get("Content-Type"); ct != "" {
		mt, _, err := mime.ParseMediaType(ct)
		if err != nil || mt != "application/json" && mt != "application/x-www-form-urlencoded" {
			return &Error{
				Status: http.StatusUnsupportedMediaType, Type: TypeInvalidRequest, Code: "unsupported_media_type",
				Message: fmt.Sprintf("the body is %.100q, want application/json", ct),
			}
		}
	}
	body := bufio.NewReader(http.MaxBytesReader(w, r.Body, limit))
	if word, _ := body.Peek(4); string(word) == "null" { // which a decoder takes for no change
		return BadRequest("invalid_type", "", "the body is a JSON null, want an object")
	}
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(dst); err != nil {
		if optional && errors.Is(err, io.EOF) {
			return nil
		}
		return bodyError(err, limit)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return bodyError(err, limit)
		}
		return BadRequest("invalid_json", "", "something follows the JSON value in the body")
	}
	return nil
}

// bodyError turns a decoder's error into one that a user can act on.
func bodyError(err error, limit int64) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &Error{
			Status: http.StatusRequestEntityTooLarge, Type: TypeInvalidRequest, Code: "body_too_large",
			Message: fmt.Sprintf("the body is longer than %d bytes", limit),
		}
	}
	if e, ok := errors.AsType[*Error](err); ok { // of a type that decodes itself
		return e
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if e.Field == "" {
			return BadRequest("invalid_type", "", fmt.Sprintf("the body is a JSON %s, want %s", e.Value, kindName(e.Type.Kind().String())))
		}
		return BadRequest("invalid_type", e.Field, fmt.Sprintf("%s is a JSON %s, want %s", e.Field, e.Value, kindName(e.Type.Kind().String())))
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return BadRequest("invalid_json", "", fmt.Sprintf("the body is not JSON: %v at byte %d", e, e.Offset))
	}
	if errors.Is(err, io.EOF) {
		return BadRequest("missing_body", "", "the body is empty, want a JSON object")
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return BadRequest("invalid_json", "", "the body ends in the middle of the JSON value")
	}
	// encoding/json has no type for this one.
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return BadRequest("unknown_field", strings.Trim(name, `"`), fmt.Sprintf("unknown field %.100s", name))
	}
	return BadRequest("invalid_request", "", fmt.Sprintf("the body cannot be used: %v", err))
}

// kindName says a Go kind in JSON's words.
func kindName(kind string) string {
	switch {
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return "a whole number in range"
	case strings.HasPrefix(kind, "float"):
		return "a number"
	case kind == "string":
		return "a string"
	case kind == "bool":
		return "true or false"
	case kind == "slice" || kind == "array":
		return "an array"
	}
	return "an object"
}

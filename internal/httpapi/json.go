package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"

	"github.com/kvtier/kvtier/internal/strictjson"
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

// ReadJSON decodes the body, of at most limit bytes (0 means DefaultBodyBytes), into dst, which points to a zero value. It accepts exactly
// one JSON value by the rules of package strictjson: known fields, once each, none of them null where a value belongs. The error is an
// *Error that names the field at fault. An empty body is an error; see ReadOptionalJSON.
func ReadJSON(w http.ResponseWriter, r *http.Request, limit int64, dst any) error {
	return readJSON(w, r, limit, dst, false, strictjson.Options{})
}

// ReadOptionalJSON is ReadJSON for requests whose body may be empty: dst then keeps its value.
func ReadOptionalJSON(w http.ResponseWriter, r *http.Request, limit int64, dst any) error {
	return readJSON(w, r, limit, dst, true, strictjson.Options{})
}

// ReadOpenAIJSON is ReadJSON for the routes of OpenAI's API, where a field that is null is one that was left out.
func ReadOpenAIJSON(w http.ResponseWriter, r *http.Request, limit int64, dst any) error {
	return readJSON(w, r, limit, dst, false, strictjson.Options{NullIsAbsent: true})
}

func readJSON(w http.ResponseWriter, r *http.Request, limit int64, dst any, optional bool, opt strictjson.Options) error {
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
	var body bytes.Buffer
	if r.ContentLength > 0 {
		body.Grow(int(min(r.ContentLength, limit)) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, limit)); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return &Error{
				Status: http.StatusRequestEntityTooLarge, Type: TypeInvalidRequest, Code: "body_too_large",
				Message: fmt.Sprintf("the body is longer than %d bytes", limit),
			}
		}
		return BadRequest("incomplete_body", "", "the body did not arrive: the connection ended or was too slow")
	}
	if optional && body.Len() == 0 {
		return nil
	}
	return DecodeError(strictjson.Decode(body.Bytes(), dst, opt), "the body")
}

// DecodeError is the answer to an error of package strictjson; whole is what the JSON as such is called, such as "the body".
func DecodeError(err error, whole string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok { // of a type that decodes itself
		return e
	}
	e, ok := errors.AsType[*strictjson.Error](err)
	if !ok {
		return BadRequest("invalid_request", "", whole+" cannot be used: "+err.Error())
	}
	says := e.Says(whole)
	if e.Kind == strictjson.Empty {
		says += ", want a JSON object"
	}
	return BadRequest(decodeCode(e.Kind), e.Path, says)
}

func decodeCode(k strictjson.Kind) string {
	switch k {
	case strictjson.Empty:
		return "missing_body"
	case strictjson.Encoding:
		return "invalid_utf8"
	case strictjson.Unknown:
		return "unknown_field"
	case strictjson.Repeated:
		return "repeated_field"
	case strictjson.Type:
		return "invalid_type"
	}
	return "invalid_json"
}

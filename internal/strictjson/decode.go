package strictjson

import (
	"bytes"
	"encoding"
	"errors"
	"io"
	"reflect"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Options say what Decode accepts beyond the strict rules; the zero value is nothing.
type Options struct {
	// NullIsAbsent takes a field that is null as one that was left out, as OpenAI's API does. Without it null is for
	// pointers, interfaces, and types that decode themselves. In an array null is an error in any case.
	NullIsAbsent bool
}

// Decode decodes exactly one JSON value from b into dst, which points to a zero value. The error is an *Error, or one that a
// type's own UnmarshalJSONFrom has returned, wrapped in it. Decode keeps nothing of b.
//
// A type that may be several things in JSON implements UnmarshalJSONFrom (see json.UnmarshalerFrom): it looks at
// Decoder.PeekKind, decodes with json.UnmarshalDecode, which keeps these rules, and returns Want for what it cannot use.
func Decode(b []byte, dst any, opt Options) error {
	if len(bytes.TrimLeft(b, " \t\r\n")) == 0 {
		return &Error{Kind: Empty, Problem: "is empty"}
	}
	if !utf8.Valid(b) {
		return &Error{Kind: Encoding, Problem: "is not valid UTF-8"}
	}
	settings := []json.Options{json.RejectUnknownMembers(true)}
	// To look at every value costs more than decoding it, in a prompt of 100,000 tokens: only if there can be a null at all.
	if bytes.Contains(b, []byte("null")) {
		settings = append(settings, json.WithUnmarshalers(json.UnmarshalFromFunc(opt.refuseNull)))
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(b), settings...)
	if err := json.UnmarshalDecode(dec, dst); err != nil {
		return explain(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return &Error{Kind: Syntax, Problem: "has a JSON value, and something follows it"}
	}
	return nil
}

// refuseNull is called for every value, before it is decoded.
func (o Options) refuseNull(dec *jsontext.Decoder, v any) error {
	if dec.PeekKind() != jsontext.KindNull {
		return errors.ErrUnsupported // the next rule's turn
	}
	switch v.(type) {
	case json.Unmarshaler, json.UnmarshalerFrom:
		return errors.ErrUnsupported
	}
	t := reflect.TypeOf(v).Elem()
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return errors.ErrUnsupported
	}
	parent, _ := dec.StackIndex(dec.StackDepth())
	if o.NullIsAbsent && parent == jsontext.KindBeginObject {
		return errors.ErrUnsupported
	}
	return Want(dec, wanted(t))
}

// wanted says a Go type in JSON's words.
func wanted(t reflect.Type) string {
	if t == nil {
		return "something else"
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "a string"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return "a whole number"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "an array"
	}
	return "an object"
}

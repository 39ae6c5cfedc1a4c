package strictjson

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Kind says which rule was broken.
type Kind int

// Kinds of errors.
const (
	Syntax   Kind = iota // not JSON
	Empty                // nothing at all
	Encoding             // not UTF-8
	Unknown              // a field that there is not
	Repeated             // a field that is there twice
	Type                 // a value of the wrong type, out of range, or that its type refuses
)

// Error says what is wrong with a JSON text.
type Error struct {
	Kind    Kind
	Path    string // of the value at fault, such as messages[2].content; "" for the whole
	Problem string // continues a sentence that begins with the path, or with what the whole is called; see Says
	Err     error  // what a type's own decoder returned, if that is the reason
}

func (e *Error) Error() string { return e.Says("the JSON") }

// Says is the error as a sentence; whole is what the text as such is called, such as "the body".
func (e *Error) Says(whole string) string {
	switch {
	case e.Kind == Unknown:
		return `unknown field "` + shorten(e.Path) + `"` + e.Problem
	case e.Path == "":
		return whole + " " + e.Problem
	}
	return shorten(e.Path) + " " + e.Problem
}

func (e *Error) Unwrap() error { return e.Err }

// Want is the error of a type that decodes itself for a value that it cannot use. words say what it could, such as
// "a string or an array of strings". Call it before the value is read from dec.
func Want(dec *jsontext.Decoder, words string) error {
	return &Error{Kind: Type, Problem: "is " + named(dec.PeekKind(), nil) + ", want " + words}
}

// Invalid is the error of a type that decodes itself for a value of the right type that it refuses. problem continues a
// sentence that begins with the value's path.
func Invalid(problem string) error { return &Error{Kind: Type, Problem: problem} }

// explain turns the library's error into ours.
func explain(err error) error {
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		switch {
		case errors.Is(e.Err, jsontext.ErrDuplicateName):
			return &Error{Kind: Repeated, Path: path(e.JSONPointer), Problem: "is there twice"}
		case errors.Is(e.Err, io.ErrUnexpectedEOF):
			return &Error{Kind: Syntax, Problem: "ends in the middle of its JSON value"}
		}
		return &Error{Kind: Syntax, Problem: fmt.Sprintf("is not JSON: %v at byte %d", e.Err, e.ByteOffset)}
	}
	e, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		return &Error{Kind: Type, Problem: "cannot be used: " + err.Error(), Err: err}
	}
	at := path(e.JSONPointer)
	if errors.Is(e.Err, json.ErrUnknownName) {
		problem := ""
		if name, ok := otherCase(e.GoType, e.JSONPointer.LastToken()); ok {
			problem = ": the case counts, it is called " + name
		}
		return &Error{Kind: Unknown, Path: at, Problem: problem}
	}
	if own, ok := errors.AsType[*Error](e.Err); ok {
		if own.Path == "" {
			own.Path = at
		}
		return own
	}
	want := wanted(e.GoType)
	problem := "is " + named(e.JSONKind, e.JSONValue) + ", want " + want
	switch {
	case errors.Is(e.Err, strconv.ErrRange):
		problem = fmt.Sprintf("is %.40s, which is out of range", e.JSONValue)
	case want == "a string" && e.JSONKind != jsontext.KindString: // the library's words for it would follow
	case e.Err != nil && !errors.Is(e.Err, strconv.ErrSyntax):
		problem = "cannot be used: " + e.Err.Error()
	}
	return &Error{Kind: Type, Path: at, Problem: problem, Err: e.Err}
}

// named says a kind of JSON; a number, whose type may be right and its form wrong, as it was written.
func named(k jsontext.Kind, value jsontext.Value) string {
	switch k {
	case jsontext.KindNull:
		return "null"
	case jsontext.KindFalse, jsontext.KindTrue:
		return "a JSON boolean"
	case jsontext.KindString:
		return "a JSON string"
	case jsontext.KindNumber:
		if len(value) > 0 && len(value) <= 40 {
			return "the JSON number " + string(value)
		}
		return "a JSON number"
	case jsontext.KindBeginObject:
		return "a JSON object"
	case jsontext.KindBeginArray:
		return "a JSON array"
	}
	return "something else"
}

// path writes a JSON pointer as people do: /messages/2/content is messages[2].content.
func path(p jsontext.Pointer) string {
	var s strings.Builder
	for name := range p.Tokens() {
		if _, err := strconv.ParseUint(name, 10, 64); err == nil {
			s.WriteString("[" + name + "]")
			continue
		}
		if s.Len() > 0 {
			s.WriteByte('.')
		}
		s.WriteString(printable(name))
	}
	return s.String()
}

// printable quotes a name that would not read as one.
func printable(name string) string {
	if q := strconv.QuoteToGraphic(name); name == "" || q != `"`+name+`"` || strings.ContainsAny(name, " .[]") {
		return q
	}
	return name
}

// shorten keeps a hostile name from filling the answer.
func shorten(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// otherCase finds the field of a struct that is called name but for the case.
func otherCase(t reflect.Type, name string) (string, bool) {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return "", false
	}
	for _, f := range reflect.VisibleFields(t) {
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag != "" && tag != "-" && strings.EqualFold(tag, name) {
			return tag, true
		}
	}
	return "", false
}

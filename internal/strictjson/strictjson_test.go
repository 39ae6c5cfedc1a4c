package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// request has what requests have: nested structs and lists, embedded fields, pointers, maps, and types that decode themselves.
type request struct {
	common
	Model    string           `json:"model"`
	Max      int              `json:"max_tokens"`
	Flag     bool             `json:"flag"`
	Stop     []string         `json:"stop"`
	Tokens   []int32          `json:"tokens"`
	Options  *options         `json:"stream_options"`
	Messages []message        `json:"messages"`
	Bias     map[string]any   `json:"bias"`
	Any      any              `json:"any"`
	Raw      json.RawMessage  `json:"raw"`
	Digest   hex              `json:"digest"`
	Same     map[string][]int `json:"same"`
}

type common struct {
	Temperature *float64 `json:"temperature"`
}

type options struct {
	Usage bool `json:"include_usage"`
}

type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content may be a text or a list of texts.
type content string

func (c *content) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch dec.PeekKind() {
	case jsontext.KindString:
		return jsonv2.UnmarshalDecode(dec, (*string)(c))
	case jsontext.KindBeginArray:
		var parts []struct {
			Text string `json:"text"`
		}
		if err := jsonv2.UnmarshalDecode(dec, &parts); err != nil {
			return err
		}
		if len(parts) > 2 {
			return Invalid("has too many parts")
		}
		for _, p := range parts {
			*c += content(p.Text)
		}
		return nil
	}
	return Want(dec, "a string or an array of parts")
}

// hex decodes itself from a text.
type hex string

func (h *hex) UnmarshalText(b []byte) error {
	if strings.Trim(string(b), "0123456789abcdef") != "" {
		return errors.New("not hexadecimal")
	}
	*h = hex(b)
	return nil
}

func TestDecode(t *testing.T) {
	half := 0.5
	for in, want := range map[string]request{
		`{}`: {},
		" {\"model\":\"m\\u00e9\",\"max_tokens\":-3}\r\n": {Model: "mé", Max: -3},
		`{"temperature":0.5,"flag":true,"stop":["a"]}`:    {common: common{&half}, Flag: true, Stop: []string{"a"}},
		`{"stream_options":{"include_usage":true}}`:       {Options: &options{true}},
		`{"messages":[{"role":"user","content":"x"},{"content":[{"text":"a"},{"text":"b"}]}]}`: {
			Messages: []message{{"user", "x"}, {"", "ab"}}},
		`{"temperature":null,"stream_options":null,"any":null}`: {},
		`{"any":{"a":[null,1]}}`:                                {Any: map[string]any{"a": []any{nil, 1.0}}},
		`{"bias":{"5":null},"raw":null}`:                        {Bias: map[string]any{"5": nil}, Raw: json.RawMessage("null")},
		`{"model":"null"}`:                                      {Model: "null"},
		`{"digest":"0f"}`:                                       {Digest: "0f"},
	} {
		var got request
		if err := Decode([]byte(in), &got, Options{}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", in, got, err, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct {
		in   string
		kind Kind
		path string
		says string
	}{
		{``, Empty, "", "the body is empty"},
		{" \n", Empty, "", "the body is empty"},
		{"{\"model\":\"\xff\"}", Encoding, "", "the body is not valid UTF-8"},
		{`{"model":"m`, Syntax, "", "the body ends in the middle of its JSON value"},
		{`{"model":}`, Syntax, "", "the body is not JSON: invalid character '}' at start of value at byte 9"},
		{`{"model":"\ud800"}`, Syntax, "", "surrogate"},
		{`{} {}`, Syntax, "", "the body has a JSON value, and something follows it"},
		{`{} x`, Syntax, "", "the body has a JSON value, and something follows it"},
		{`[1]`, Type, "", "the body is a JSON array, want an object"},
		{`"x"`, Type, "", "the body is a JSON string, want an object"},
		{`null`, Type, "", "the body is null, want an object"},

		{`{"mdl":"m"}`, Unknown, "mdl", `unknown field "mdl"`},
		{`{"MODEL":"m"}`, Unknown, "MODEL", `unknown field "MODEL": the case counts, it is called model`},
		{`{"Temperature":1}`, Unknown, "Temperature", "called temperature"},
		{`{"model":"a","Model":"b"}`, Unknown, "Model", "called model"},
		{`{"stream_options":{"foo":1}}`, Unknown, "stream_options.foo", `unknown field "stream_options.foo"`},
		{`{"messages":[{},{},{"foo":1}]}`, Unknown, "messages[2].foo", `unknown field "messages[2].foo"`},
		{`{"messages":[{"content":[{"text":"a","Text":"b"}]}]}`, Unknown, "messages[0].content[0].Text", "called text"},
		{`{"common":{}}`, Unknown, "common", ""},
		{`{"a b.c\n":1}`, Unknown, `"a b.c\n"`, ""},

		{`{"model":"a","model":"b"}`, Repeated, "model", "model is there twice"},
		{`{"model":"a","mod\u0065l":"b"}`, Repeated, "model", ""},
		{`{"messages":[{"role":"a","role":"b"}]}`, Repeated, "messages[0].role", "messages[0].role is there twice"},
		{`{"any":{"x":1,"x":2}}`, Repeated, "any.x", ""},
		{`{"raw":{"x":1,"x":2}}`, Repeated, "raw.x", ""},
		{`{"bias":{"5":1,"5":2}}`, Repeated, "bias[5]", ""},
		{`{"messages":[{"content":[{"text":"a","text":"b"}]}]}`, Repeated, "messages[0].content[0].text", ""},

		{`{"model":3}`, Type, "model", "model is a JSON number, want a string"},
		{`{"max_tokens":1.5}`, Type, "max_tokens", "max_tokens is the JSON number 1.5, want a whole number"},
		{`{"max_tokens":"1"}`, Type, "max_tokens", "max_tokens is a JSON string, want a whole number"},
		{`{"max_tokens":99999999999999999999}`, Type, "max_tokens", "max_tokens is 99999999999999999999, which is out of range"},
		{`{"tokens":[1,2,3000000000]}`, Type, "tokens[2]", "tokens[2] is 3000000000, which is out of range"},
		{`{"temperature":1e999}`, Type, "temperature", "out of range"},
		{`{"temperature":{}}`, Type, "temperature", "temperature is a JSON object, want a number"},
		{`{"stop":"x"}`, Type, "stop", "stop is a JSON string, want an array"},
		{`{"stop":["x",true]}`, Type, "stop[1]", "stop[1] is a JSON boolean, want a string"},
		{`{"flag":"x"}`, Type, "flag", "want true or false"},
		{`{"stream_options":{"include_usage":[]}}`, Type, "stream_options.include_usage", "is a JSON array, want true or false"},
		{`{"messages":[{"content":5}]}`, Type, "messages[0].content", "messages[0].content is a JSON number, want a string or an array of parts"},
		{`{"messages":[{"content":[{},{},{}]}]}`, Type, "messages[0].content", "messages[0].content has too many parts"},
		{`{"digest":5}`, Type, "digest", "want a string"},
		{`{"digest":"xyz"}`, Type, "digest", "digest cannot be used: not hexadecimal"},

		{`{"model":null}`, Type, "model", "model is null, want a string"},
		{`{"max_tokens":null}`, Type, "max_tokens", "max_tokens is null, want a whole number"},
		{`{"stop":null}`, Type, "stop", "stop is null, want an array"},
		{`{"stop":[null]}`, Type, "stop[0]", "stop[0] is null, want a string"},
		{`{"messages":[null]}`, Type, "messages[0]", "messages[0] is null, want an object"},
		{`{"messages":[{"role":null}]}`, Type, "messages[0].role", ""},
		{`{"messages":[{"content":null}]}`, Type, "messages[0].content", "messages[0].content is null, want a string or an array of parts"},
		{`{"digest":null}`, Type, "digest", "digest is null, want a string"},
		{`{"bias":null}`, Type, "bias", "want an object"},
		{`{"same":{"a":null}}`, Type, "same.a", "want an array"},
	} {
		err := Decode([]byte(tt.in), new(request), Options{})
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Kind != tt.kind || e.Path != tt.path || !strings.Contains(e.Says("the body"), tt.says) {
			t.Errorf("%s: got %+v (%v), want kind %d, path %q, saying %q", tt.in, e, err, tt.kind, tt.path, tt.says)
		}
		checkWords(t, err)
	}
}

// TestNullIsAbsent: what OpenAI's API does with a field, and not with an element of a list.
func TestNullIsAbsent(t *testing.T) {
	var got request
	in := `{"model":null,"max_tokens":null,"flag":null,"stop":null,"messages":[{"role":null}],"bias":null,"digest":null}`
	if err := Decode([]byte(in), &got, Options{NullIsAbsent: true}); err != nil || got.Stop != nil || len(got.Messages) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for in, path := range map[string]string{
		`{"stop":[null]}`: "stop[0]", `{"tokens":[1,null]}`: "tokens[1]", `{"messages":[null]}`: "messages[0]", `null`: "",
		`{"messages":[{"content":[null]}]}`: "messages[0].content[0]",
	} {
		err := Decode([]byte(in), new(request), Options{NullIsAbsent: true})
		if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Type || e.Path != path {
			t.Errorf("%s: got %+v (%v), want %q", in, e, err, path)
		}
	}
}

// TestOwnErrors: what a type returns from its decoder can be found in the chain.
func TestOwnErrors(t *testing.T) {
	var dst struct {
		List []refusing `json:"list"`
	}
	err := Decode([]byte(`{"list":[1]}`), &dst, Options{})
	e, ok := errors.AsType[*Error](err)
	if !ok || !errors.Is(err, errRefused) || e.Path != "list[0]" || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}

var errRefused = errors.New("refused")

type refusing struct{}

func (*refusing) UnmarshalJSON([]byte) error { return errRefused }

func checkWords(t *testing.T, err error) {
	t.Helper()
	text := err.Error()
	for _, word := range []string{"Go ", "strictjson", "jsontext", "json:", "request", "message.", "int32", "float64", "struct", "UnmarshalJSON"} {
		if strings.Contains(text, word) {
			t.Errorf("an error of the language's insides, %q: %s", word, text)
		}
	}
	if len(text) > 400 || !utf8.ValidString(text) {
		t.Errorf("%d bytes: %.500q", len(text), text)
	}
}

// FuzzDecode: no panic and no words of the language; what is accepted is what encoding/json reads there, which knows
// neither fields that are there twice nor the case of their names, and is the same after encoding it.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","max_tokens":1,"stop":["a"],"messages":[{"role":"user","content":[{"text":"a"}]}]}`,
		`{"bias":{"5":1},"any":[null,{"a":1e5}],"raw":[1,2],"digest":"0f","temperature":0.1}`,
		`{"tokens":[1,2,-3],"stream_options":{"include_usage":true}}`,
		`{"model":"a","model":"b"}`, `{"MODEL":"a"}`, `[[[[`, `{"stop":[null]}`, "\xff", `{"a b.c":1}`, `{"max_tokens":1e400}`, ``,
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, null bool) {
		var got request
		err := Decode([]byte(s), &got, Options{NullIsAbsent: null})
		if err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Says("") == "" || len(e.Says("the body")) > 500 || !utf8.ValidString(e.Says("the body")) {
				t.Fatalf("%q: %#v", s, err)
			}
			return
		}
		var loose map[string]json.RawMessage
		if err := json.Unmarshal([]byte(s), &loose); err != nil {
			t.Fatalf("%q was accepted, and is not JSON: %v", s, err)
		}
		known := fields(reflect.TypeFor[request]())
		for name := range maps.Keys(loose) {
			if !slices.Contains(known, name) {
				t.Fatalf("%q: field %q was accepted", s, name)
			}
		}
		var model string
		_ = json.Unmarshal(loose["model"], &model)
		if got.Model != model {
			t.Fatalf("%q: model %q, want %q", s, got.Model, model)
		}
	})
}

func fields(t reflect.Type) (names []string) {
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// BenchmarkDecode shows what a long prompt costs, with and without a null in it.
func BenchmarkDecode(b *testing.B) {
	for _, null := range []bool{false, true} {
		b.Run(fmt.Sprint("null=", null), func(b *testing.B) {
			tokens := make([]int32, 100_000)
			for i := range tokens {
				tokens[i] = int32(i)
			}
			body := map[string]any{"model": "m", "tokens": tokens}
			if null {
				body["temperature"] = nil
			}
			text, err := json.Marshal(body)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if err := Decode(text, new(request), Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

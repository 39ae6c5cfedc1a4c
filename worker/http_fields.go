package worker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// The types here are fields that may be one thing or another. Each looks at what the value begins with, decodes it once, into a
// fresh variable, and takes it whole or not at all: what a decoder leaves behind of a value that it cannot use is never looked
// at, and null is no string and no token.

// prompts is a text, several texts, token ids, or several lists of token ids; nil if there is none.
type prompts []prompt

// prompt is a text, or token ids if tokens is not nil.
type prompt struct {
	text   string
	tokens []int32
}

const wantPrompt = "want a string, an array of strings, an array of token ids, or an array of arrays of token ids"

func (p *prompts) UnmarshalJSON(b []byte) error {
	*p = nil
	switch first, list := begins(b); {
	case first == 'n':
		return nil
	case first == '"':
		text, err := oneText(b)
		*p = prompts{{text: text}}
		return err
	case first != '[':
		return invalidType("prompt", "prompt is "+jsonKind(first)+", "+wantPrompt)
	case list == ']':
		return httpapi.BadRequest("invalid_value", "prompt", "prompt is an empty array, "+wantPrompt)
	case list == '"':
		texts, err := someTexts(b, "prompt", wantPrompt)
		for _, t := range texts {
			*p = append(*p, prompt{text: t})
		}
		return err
	case list == '[':
		var lists []json.RawMessage
		if err := json.Unmarshal(b, &lists); err != nil {
			return err
		}
		for i, l := range lists {
			ids, err := tokenIDs(l, fmt.Sprintf("prompt[%d]", i))
			if err != nil {
				*p = nil
				return err
			}
			*p = append(*p, prompt{tokens: ids})
		}
		return nil
	case jsonKind(list) != "a number":
		return invalidType("prompt", "prompt[0] is "+jsonKind(list)+", "+wantPrompt)
	default:
		ids, err := tokenIDs(b, "prompt")
		if err == nil {
			*p = prompts{{tokens: ids}}
		}
		return err
	}
}

// one is the only prompt, for routes that take no more.
func (p prompts) one() (prompt, error) {
	switch {
	case len(p) == 0:
		return prompt{}, httpapi.BadRequest("missing_field", "prompt", "prompt is missing")
	case len(p) > 1:
		return prompt{}, httpapi.BadRequest("invalid_value", "prompt", fmt.Sprintf("prompt has %d prompts, want one", len(p)))
	}
	return p[0], nil
}

// tokenIDs reads a JSON array of token ids. It goes over the text once, since a prompt may have a hundred thousand of them.
func tokenIDs(b []byte, name string) ([]int32, error) {
	if first, _ := begins(b); first != '[' {
		return nil, invalidType(param(name), name+" is "+jsonKind(first)+", want an array of token ids")
	}
	inner := bytes.TrimSpace(b[1 : len(b)-1])
	ids := make([]int32, 0, bytes.Count(inner, []byte(","))+1)
	for rest := inner; len(rest) > 0; {
		element, more, _ := bytes.Cut(rest, []byte(","))
		element, rest = bytes.TrimSpace(element), more
		id, err := strconv.ParseInt(string(element), 10, 32)
		if err != nil || id < 0 {
			what := jsonKind(element[0])
			if what == "a number" {
				what = fmt.Sprintf("%.40s", element)
			}
			return nil, httpapi.BadRequest("invalid_value", param(name), fmt.Sprintf("%s[%d] is %s, want a token id", name, len(ids), what))
		}
		ids = append(ids, int32(id))
	}
	return ids, nil
}

// stops is a text, a list of texts, or nothing.
type stops []string

func (s *stops) UnmarshalJSON(b []byte) (err error) {
	const want = "want a string or an array of strings"
	*s = nil
	switch first, _ := begins(b); first {
	case 'n':
	case '"':
		var one string
		one, err = oneText(b)
		*s = stops{one}
	case '[':
		*s, err = someTexts(b, "stop", want)
	default:
		err = invalidType("stop", "stop is "+jsonKind(first)+", "+want)
	}
	return err
}

// content is a text, a list of parts that are texts, or nothing.
type content struct {
	text string
	set  bool
}

func (c *content) UnmarshalJSON(b []byte) (err error) {
	*c = content{}
	switch first, _ := begins(b); first {
	case 'n':
		return nil
	case '"':
		c.text, err = oneText(b)
	case '[':
		c.text, err = textParts(b)
	default:
		err = invalidType("messages", "the content of a message is "+jsonKind(first)+", want a string or an array of parts")
	}
	c.set = err == nil
	return err
}

// textParts joins the texts of content parts.
func textParts(b []byte) (string, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(b, &parts); err != nil {
		return "", err
	}
	var all strings.Builder
	for i, raw := range parts {
		name := fmt.Sprintf("part %d of a message's content", i)
		var p struct {
			Type *string `json:"type"`
			Text *string `json:"text"`
		}
		if first, _ := begins(raw); first != '{' {
			return "", invalidType("messages", name+" is "+jsonKind(first)+", want an object")
		}
		if err := json.Unmarshal(raw, &p); err != nil || p.Type == nil {
			return "", invalidType("messages", name+` is not understood, want {"type": "text", "text": "…"}`)
		}
		if *p.Type != "text" {
			return "", httpapi.BadRequest("unsupported_content", "messages", fmt.Sprintf("%s has type %.40q, which is not supported, only text", name, *p.Type))
		}
		if p.Text == nil {
			return "", httpapi.BadRequest("missing_field", "messages", name+" has no text")
		}
		all.WriteString(*p.Text)
	}
	return all.String(), nil
}

func oneText(b []byte) (text string, err error) {
	err = json.Unmarshal(b, &text)
	return text, err
}

// someTexts reads a JSON array of strings.
func someTexts(b []byte, name, want string) ([]string, error) {
	var elements []json.RawMessage
	if err := json.Unmarshal(b, &elements); err != nil {
		return nil, err
	}
	texts := make([]string, len(elements))
	for i, e := range elements {
		first, _ := begins(e)
		if first != '"' {
			return nil, invalidType(param(name), fmt.Sprintf("%s[%d] is %s, %s", name, i, jsonKind(first), want))
		}
		var err error
		if texts[i], err = oneText(e); err != nil {
			return nil, err
		}
	}
	return texts, nil
}

// begins returns the first character of a JSON value and, of an array, that of its first element, or ']'.
func begins(b []byte) (first, element byte) {
	b = bytes.TrimLeft(b, " \t\r\n")
	if len(b) == 0 {
		return 0, 0
	}
	if rest := bytes.TrimLeft(b[1:], " \t\r\n"); b[0] == '[' && len(rest) > 0 {
		element = rest[0]
	}
	return b[0], element
}

// jsonKind says in JSON's words what begins with a character.
func jsonKind(first byte) string {
	switch first {
	case '"':
		return "a string"
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// param is the field that a name such as prompt[3] belongs to.
func param(name string) string {
	field, _, _ := strings.Cut(name, "[")
	return field
}

func invalidType(param, message string) error {
	return httpapi.BadRequest("invalid_type", param, message)
}

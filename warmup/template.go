package warmup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/kvtier/kvtier/internal/strictjson"
)

const (
	maxTemplateBytes = 16 << 20 // of all definitions together
	maxTemplateDepth = 8
	maxTemplateName  = 64
)

// Templates are texts with holes: {{name}} stands for a variable of the line that uses the template, or else for another definition. They
// are safe for concurrent use.
type Templates struct {
	// Dir is where files that a manifest names are looked for; "" refuses them, for manifests of strangers.
	Dir string

	mu    sync.RWMutex
	texts map[string]string
	bytes int
}

// variable is a value of vars: a text, or {"file": "name"} for the text of a file.
type variable struct{ text, file string }

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (v *variable) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	const words = `a text or {"file": "name"}`
	switch dec.PeekKind() {
	case jsontext.KindString:
		return json.UnmarshalDecode(dec, &v.text)
	case jsontext.KindBeginObject:
		var f struct {
			File string `json:"file"`
		}
		if err := json.UnmarshalDecode(dec, &f); err != nil {
			return err
		}
		if f.File == "" {
			return strictjson.Invalid("names no file, want " + words)
		}
		v.file = f.File
		return nil
	}
	return strictjson.Want(dec, words)
}

func (t *Templates) define(name, text string) error {
	if len(name) > maxTemplateName || strings.ContainsAny(name, "{}") {
		return broken("define: name %.80q: want up to %d characters without braces", name, maxTemplateName)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.texts == nil {
		t.texts = map[string]string{}
	}
	if old, again := t.texts[name]; again && old != text {
		return broken("%q is defined twice", name)
	} else if again {
		return nil
	}
	if t.bytes += len(text); t.bytes > maxTemplateBytes {
		return broken("definitions have more than %d bytes together", maxTemplateBytes)
	}
	t.texts[name] = text
	return nil
}

// readFile reads a file that a manifest names: one below Dir, whatever links are there.
func (t *Templates) readFile(name string) (string, error) {
	if t.Dir == "" {
		return "", errors.New("this manifest may not name files")
	}
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("file %.100q is not below the manifest's directory", name)
	}
	root, err := os.OpenRoot(t.Dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxLineBytes+1))
	if err != nil {
		return "", err
	}
	if len(b) > MaxLineBytes {
		return "", fmt.Errorf("file %s is longer than %d bytes", name, MaxLineBytes)
	}
	return string(b), nil
}

// expand fills in a template.
func (t *Templates) expand(name string, vars map[string]variable) (string, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	text, ok := t.texts[name]
	if !ok {
		return "", broken("template %.80q is not defined above this line", name)
	}
	var out strings.Builder
	if err := t.fill(&out, text, vars, 0); err != nil {
		return "", err
	}
	return out.String(), nil
}

func (t *Templates) fill(out *strings.Builder, text string, vars map[string]variable, depth int) error {
	if depth > maxTemplateDepth {
		return broken("templates are nested more than %d deep", maxTemplateDepth)
	}
	for {
		before, rest, hole := strings.Cut(text, "{{")
		out.WriteString(before)
		if out.Len() > MaxLineBytes {
			return broken("the prompt is longer than %d bytes", MaxLineBytes)
		}
		if !hole {
			return nil
		}
		name, after, closed := strings.Cut(rest, "}}")
		if !closed {
			return broken("a template has {{ without }}")
		}
		name = strings.TrimSpace(name)
		if v, ok := vars[name]; ok {
			value := v.text
			if v.file != "" {
				var err error
				if value, err = t.readFile(v.file); err != nil {
					return broken("variable %q: %w", name, err)
				}
			}
			out.WriteString(value) // as it is: a document may contain braces
		} else if other, ok := t.texts[name]; ok {
			if err := t.fill(out, other, vars, depth+1); err != nil {
				return err
			}
		} else {
			return broken("{{%.80s}} is neither a variable of this line nor a definition", name)
		}
		text = after
	}
}

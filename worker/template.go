package worker

import (
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/ardanlabs/jinja"

	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/worker/engine"
)

// ErrTemplate means that a chat template cannot be used; the message says why.
var ErrTemplate = errors.New("worker: chat template cannot be used")

// PlainTemplate as a chat template's source is the one for models that have none; see plainTemplate.
const PlainTemplate = "plain"

// Bounds of a template: it comes with a model's file, and must not hold up the worker for long, whatever it says.
const (
	maxTemplateBytes = 64 << 10
	maxTemplateSteps = 20_000 // turns of loops and calls of macros, and elements of ranges, in one rendering
)

// chatTemplate turns a conversation into a prompt. It is safe for concurrent use.
type chatTemplate struct {
	compiled *jinja.Template // nil for the plain one
	bos, eos string
	err      error // why it cannot be used
}

// newChatTemplate compiles a template. Its errors come when it is used: a worker whose model has a template that nobody can read still
// answers completions.
func newChatTemplate(t engine.ChatTemplate) *chatTemplate {
	c := &chatTemplate{bos: t.BOS, eos: t.EOS}
	if t.Source == "" || t.Source == PlainTemplate {
		return c
	}
	if len(t.Source) > maxTemplateBytes {
		c.err = fmt.Errorf("%w: it has %d bytes, want at most %d", ErrTemplate, len(t.Source), maxTemplateBytes)
		return c
	}
	source, err := hooked(t.Source)
	if err == nil {
		c.compiled, err = jinja.Compile(source)
	}
	if err != nil {
		c.err = fmt.Errorf("%w: %w", ErrTemplate, err)
	}
	return c
}

// CheckTemplate returns an ErrTemplate for a chat template that cannot be used.
func CheckTemplate(source string) error {
	if source == "" {
		return fmt.Errorf("%w: it is empty", ErrTemplate)
	}
	return newChatTemplate(engine.ChatTemplate{Source: source}).err
}

// render returns the prompt, and whether it has the texts of special tokens in it.
func (c *chatTemplate) render(messages []message) (prompt string, markup bool, err error) {
	if c.err != nil {
		return "", false, &httpapi.Error{Status: http.StatusNotImplemented, Type: httpapi.TypeServer, Code: "template_unusable",
			Message: fmt.Sprintf("%v; /v1/completions works, and a worker started with --chat-template plain or FILE has another template", c.err)}
	}
	if c.compiled == nil {
		return plainTemplate(messages), false, nil
	}
	turns := make([]any, len(messages))
	for i, m := range messages {
		turn := map[string]any{"role": m.Role, "content": m.Content.text}
		if m.Name != "" {
			turn["name"] = m.Name
		}
		turns[i] = turn
	}
	left := maxTemplateSteps
	spend := func(n int64) error {
		if left -= int(min(max(n, 1), maxTemplateSteps+1)); left < 0 {
			return fmt.Errorf("it takes more than %d steps", maxTemplateSteps)
		}
		return nil
	}
	prompt, err = c.compiled.RenderValues(map[string]jinja.Value{
		"messages": jinja.FromGoValue(turns), "bos_token": jinja.NewString(c.bos), "eos_token": jinja.NewString(c.eos),
		"add_generation_prompt": jinja.NewBool(true), "tools": jinja.None(), "documents": jinja.None(),
		"kvtier_step": jinja.NewCallable("kvtier_step", func([]jinja.Value, map[string]jinja.Value) (jinja.Value, error) { return jinja.None(), spend(1) }),
		"range":       jinja.NewCallable("range", boundedRange(spend)),
	})
	if err != nil {
		// Templates refuse what their model was not made for, such as two turns of one role.
		return "", false, httpapi.BadRequest("template_refused", "messages", fmt.Sprintf("the model's chat template refuses these messages: %v", err))
	}
	return prompt, true, nil
}

// boundedRange is Jinja's range, which pays for its elements before it makes them.
func boundedRange(spend func(int64) error) func([]jinja.Value, map[string]jinja.Value) (jinja.Value, error) {
	return func(args []jinja.Value, _ map[string]jinja.Value) (jinja.Value, error) {
		if len(args) < 1 || len(args) > 3 {
			return jinja.Undefined(), fmt.Errorf("range takes 1 to 3 numbers, not %d", len(args))
		}
		n := [3]int64{}
		for i, a := range args {
			if !a.IsInt() {
				return jinja.Undefined(), errors.New("range takes whole numbers")
			}
			n[i] = a.AsInt()
		}
		start, stop, step := n[0], n[1], n[2]
		switch len(args) {
		case 1:
			start, stop, step = 0, n[0], 1
		case 2:
			step = 1
		}
		if step == 0 {
			return jinja.Undefined(), errors.New("the step of range is 0")
		}
		var out []jinja.Value
		for at := start; step > 0 && at < stop || step < 0 && at > stop; at += step {
			if err := spend(1); err != nil {
				return jinja.Undefined(), err
			}
			out = append(out, jinja.NewInt(at))
		}
		return jinja.NewList(out), nil
	}
}

// templates keeps the template of the resident model compiled.
type templates struct {
	mu       sync.Mutex
	source   engine.ChatTemplate
	compiled *chatTemplate
}

// of returns the template of e, or the given one if it is not "".
func (t *templates) of(e engine.Engine, given string) *chatTemplate {
	var source engine.ChatTemplate
	if p, ok := e.(engine.Templater); ok {
		source = p.ChatTemplate()
	}
	if given != "" {
		source.Source = given
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.compiled == nil || t.source != source {
		t.source, t.compiled = source, newChatTemplate(source)
	}
	return t.compiled
}

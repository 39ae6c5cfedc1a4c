package worker

import (
	"fmt"
	"regexp"
	"strings"
)

// tag is one of {{ … }}, {% … %} and {# … #} in a template.
type tag struct {
	open, body     string // "{%", what is between the marks
	trimL, trimR   bool   // {%- and -%}
	keepL, keepR   bool   // {%+ and +%}
	from, to       int    // in the source
	statement, any bool
}

// step is counted behind the tags that begin what may be repeated: the turn of a loop, the call of a macro.
const stepHook = "{% set kvtier_ = kvtier_step() %}"

var repeated = regexp.MustCompile(`^\s*(for|macro)\b`)

// hooked rewrites a template so that white space around its tags is as the authors of chat templates expect it, which is Jinja with trim_blocks
// and lstrip_blocks, and so that every turn of a loop and every call of a macro counts a step. All text becomes string constants: then nothing
// is left of which the library could trim too much, as it does behind a tag that is not next to the text.
func hooked(source string) (string, error) {
	source = strings.TrimSuffix(source, "\n") // Jinja does
	var out strings.Builder
	at, before := 0, tag{}
	for {
		next, err := nextTag(source, at)
		if err != nil {
			return "", err
		}
		writeText(&out, source[at:next.from], before, next, at == 0)
		if !next.any {
			return out.String(), nil
		}
		if at = next.to; next.statement && strings.TrimSpace(next.body) == "raw" {
			end := regexp.MustCompile(`\{%[-+]?\s*endraw\s*[-+]?%\}`).FindStringIndex(source[at:])
			if end == nil {
				return "", fmt.Errorf("no endraw behind byte %d", at)
			}
			last, err := nextTag(source, at+end[0])
			if err != nil {
				return "", err
			}
			writeText(&out, source[at:at+end[0]], next, last, false)
			at, before = last.to, last
			continue
		}
		if before = next; next.open != "{#" {
			out.WriteString(next.open + next.body + closing[next.open])
		}
		if next.statement && repeated.MatchString(next.body) {
			out.WriteString(stepHook)
		}
	}
}

var closing = map[string]string{"{{": "}}", "{%": "%}", "{#": "#}"}

// nextTag finds the first tag at or behind byte at. Without one it is an empty tag at the end.
func nextTag(source string, at int) (tag, error) {
	for i := at; i+1 < len(source); i++ {
		open := source[i : i+2]
		end, ok := closing[open]
		if !ok {
			continue
		}
		n := tagEnd(source[i+2:], end, open != "{#")
		if n < 0 {
			return tag{}, fmt.Errorf("%s at byte %d is not closed", open, i)
		}
		t := tag{open: open, body: source[i+2 : i+2+n], from: i, to: i + 4 + n, statement: open == "{%", any: true}
		t.body, t.trimL, t.keepL = mark(t.body, strings.CutPrefix)
		t.body, t.trimR, t.keepR = mark(t.body, strings.CutSuffix)
		return t, nil
	}
	return tag{from: len(source), to: len(source)}, nil
}

func mark(body string, cut func(s, mark string) (string, bool)) (rest string, trim, keep bool) {
	if rest, trim = cut(body, "-"); !trim {
		rest, keep = cut(body, "+")
	}
	return rest, trim, keep
}

// tagEnd is where end stands outside of quotes.
func tagEnd(s, end string, quotes bool) int {
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0 && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case quotes && (c == '\'' || c == '"'):
			quote = c
		case strings.HasPrefix(s[i:], end):
			return i
		}
	}
	return -1
}

// writeText writes what stands between two tags. first says that a line begins with it.
func writeText(out *strings.Builder, text string, before, next tag, first bool) {
	if next.any {
		switch line := strings.TrimRight(text, " \t"); {
		case next.trimL:
			text = strings.TrimRight(text, space)
		case next.open != "{{" && !next.keepL && (strings.HasSuffix(line, "\n") || line == "" && first):
			text = line
		}
	}
	if before.any {
		switch {
		case before.trimR:
			text = strings.TrimLeft(text, space)
		case before.open != "{{" && !before.keepR:
			text = strings.TrimPrefix(text, "\n")
		}
	}
	if text != "" {
		out.WriteString("{{ " + constant(text) + " }}")
	}
}

const space = " \t\n\r\v\f"

// constant writes s as a string of the template language. Characters other than quotes, backslashes and line ends stand for themselves.
func constant(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

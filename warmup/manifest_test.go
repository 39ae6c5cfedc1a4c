package warmup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sourceOf writes a manifest.
func sourceOf(t testing.TB, name, text string) Source {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, cleanup, err := OpenSource([]string{path}, false, nil)
	t.Cleanup(cleanup)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// readAll returns the items and the numbers of the broken lines.
func readAll(t testing.TB, s Source) (items []Item, broken map[int]string) {
	t.Helper()
	broken = map[int]string{}
	err := s.each(func(p place, raw []byte) error {
		it, ok, err := s.parse(p, raw)
		if line, is := errors.AsType[*LineError](err); is {
			broken[line.Line] = line.Err.Error()
		} else if err != nil {
			t.Fatal(err)
		}
		if ok {
			items = append(items, it)
			again, err := s.reread(p)
			if err != nil || cmp.Diff(it, again) != "" {
				t.Errorf("line %d read again: %v\n%s", p.number, err, cmp.Diff(it, again))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return items, broken
}

func TestManifest(t *testing.T) {
	s := sourceOf(t, "m.jsonl", strings.Join([]string{
		`{"id":"a","prompt":"Good morrow"}`,
		``,
		`{"tokens":[1,2,3],"cache_salt":"acme","priority":5,"pin":true,"expect_hits":9}`,
		`{"define":"system","text":"Speak like {{who}}. {{rules}}"}`,
		`{"define":"rules","text":"Be brief."}`,
		`{"template":"system","vars":{"who":"{{Kate}}"},"tenant":"acme"}`,
		`{"messages":[{"role":"user","content":"hi"}]}` + "\r",
	}, "\n"))
	items, broken := readAll(t, s)
	want := []Item{
		{ID: "a", Prompt: "Good morrow"},
		{Tokens: []int32{1, 2, 3}, Salt: "acme", Priority: 5, Pin: true, ExpectHits: 9},
		{Prompt: "Speak like {{Kate}}. Be brief.", Salt: "acme"},
		{Messages: []Message{{"user", "hi"}}},
	}
	if diff := cmp.Diff(want, items); diff != "" || len(broken) > 0 {
		t.Errorf("broken %v, items (-want +got):\n%s", broken, diff)
	}
}

func TestBrokenLinesAreNamedAndLeftOut(t *testing.T) {
	long := strings.Repeat("x", MaxLineBytes+10)
	lines := []struct{ text, want string }{
		{`{"prompt":"one"}`, ""},
		{`{"prompt":`, "in the middle"},
		{`{"prompt":"a","promt":"b"}`, "promt"},
		{`{"prompt":"a"} {"prompt":"b"}`, "something follows"},
		{`{"prompt":"a","tokens":[1]}`, "one of"},
		{`{"id":"x"}`, "one of"},
		{`{"prompt":""}`, "empty"},
		{`{"tokens":[1,-2]}`, "position 1"},
		{`{"tokens":["a"]}`, "tokens"},
		{`{"tokens":[99999999999]}`, "tokens"},
		{`{"prompt":"a","tenant":"x","cache_salt":"y"}`, "differ"},
		{`{"prompt":"a","priority":1001}`, "priority"},
		{`{"prompt":"a","expect_hits":-1}`, "expect_hits"},
		{`{"template":"none"}`, "not defined above"},
		{`{"define":"t","text":"{{hole}}"}`, ""},
		{`{"define":"t","text":"other"}`, "twice"},
		{`{"define":"u","text":"x","prompt":"y"}`, "no prompt"},
		{`{"define":"u"}`, "text or file"},
		{`{"template":"t"}`, "hole"},
		{`{"define":"open","text":"{{hole"}`, ""},
		{`{"template":"open"}`, "without }}"},
		{`{"define":"loop","text":"{{loop}}"}`, ""},
		{`{"template":"loop"}`, "nested"},
		{`{"prompt":"a","vars":{"b":"c"}}`, "vars"},
		{`{"template":"t","vars":{"hole":{"file":"/etc/passwd"}}}`, "not below"},
		{`{"template":"t","vars":{"hole":{"file":"../../etc/passwd"}}}`, "not below"},
		{`{"template":"t","vars":{"hole":7}}`, `vars.hole is a JSON number, want a text or {"file": "name"}`},
		{`{"template":"t","vars":{"hole":{"FILE":"x"}}}`, `unknown field "vars.hole.FILE": the case counts, it is called file`},
		{`{"Prompt":"a"}`, `the case counts, it is called prompt`},
		{`{"prompt":"a","prompt":"b"}`, "prompt is there twice"},
		{`{"prompt":5}`, "prompt is a JSON number, want a string"},
		{`{"tokens":[1,null]}`, "tokens[1] is null, want a whole number"},
		{`{"prompt":"a","id":null}`, "id is null, want a string"},
		{`{"prompt":"` + long + `"}`, "longer than"},
		{`{"prompt":"` + strings.Repeat("y", 1000) + `"}`, ""},
	}
	var text []string
	for _, l := range lines {
		text = append(text, l.text)
	}
	items, broken := readAll(t, sourceOf(t, "m.jsonl", strings.Join(text, "\n")))
	if len(items) != 2 {
		t.Errorf("%d items, want the 2 good lines", len(items))
	}
	for i, l := range lines {
		switch got := broken[i+1]; {
		case l.want == "" && got != "":
			t.Errorf("line %d is good and was refused: %s", i+1, got)
		case l.want != "" && !strings.Contains(got, l.want):
			t.Errorf("line %d, %.60s: %q, want a message with %q", i+1, l.text, got, l.want)
		}
	}
}

func TestFilesOfTemplatesStayBelowTheManifest(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	for path, text := range map[string]string{
		filepath.Join(dir, "doc.txt"): "a document", outside: "secret",
		filepath.Join(dir, "m.jsonl"): `{"define":"t","file":"doc.txt"}` + "\n" + `{"template":"t"}` + "\n" + `{"define":"s","file":"link"}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	s, _, err := OpenSource([]string{filepath.Join(dir, "*.jsonl")}, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	items, broken := readAll(t, s)
	if len(items) != 1 || items[0].Prompt != "a document" || len(broken) != 1 || broken[3] == "" {
		t.Errorf("items %+v, broken %v", items, broken)
	}
}

func TestTextFilesAndStandardInput(t *testing.T) {
	items, _ := readAll(t, sourceOf(t, "p.txt", "one\n\n  \ntwo\r\nthree"))
	if diff := cmp.Diff([]Item{{Prompt: "one"}, {Prompt: "two"}, {Prompt: "three"}}, items); diff != "" {
		t.Error(diff)
	}
	for in, want := range map[string]string{"one\ntwo\n": "one", "  {\"prompt\":\"x\"}\n": "x"} {
		s, cleanup, err := OpenSource([]string{"-"}, false, strings.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		if items, _ := readAll(t, s); items[0].Prompt != want {
			t.Errorf("standard input %q: %+v", in, items)
		}
		cleanup()
	}
	if _, _, err := OpenSource([]string{filepath.Join(t.TempDir(), "*.txt")}, false, nil); err == nil {
		t.Error("a pattern that matches nothing is accepted")
	}
}

// TestCheck: a manifest is refused with the line and the reason if nothing of it can be warmed, and if strict, if a single line cannot.
func TestCheck(t *testing.T) {
	for _, tt := range []struct{ text, lenient, strict string }{
		{`{"prompt":"a"}`, "", ""},
		{"\n\n{\"define\":\"t\",\"text\":\"x\"}\n{\"template\":\"t\"}", "", ""},
		{"hello", "manifest: line 1: broken line: it is not JSON", "manifest: line 1: broken line: it is not JSON"},
		{"\nid,prompt\n1,hello", "manifest: line 2: ", "manifest: line 2: "},
		{"{\"prompt\":\"a\"}\nhello", "", "manifest: line 2: broken line: it is not JSON"},
		{"hello\n{\"prompt\":\"a\"}", "", "manifest: line 1: "},
		{`[{"prompt":"a"}]`, "it is a JSON array, want an object", "want an object"},
		{`{"define":"t","text":"x"}`, "no prompt", "no prompt"},
		{"\n \n", "no prompt", "no prompt"},
	} {
		for strict, want := range map[bool]string{false: tt.lenient, true: tt.strict} {
			err := TextSource("manifest", tt.text).Check(strict)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%q, strict %v: %v, want %q", tt.text, strict, err, want)
			}
		}
	}
}

// FuzzParseLine: whatever a line holds, it is an item within the limits, a definition, or an error that wraps ErrLine.
func FuzzParseLine(f *testing.F) {
	for _, s := range []string{
		`{"prompt":"a"}`, `{"tokens":[1,2]}`, `{"define":"a","text":"{{b}}"}`, `{"template":"known","vars":{"x":"y"}}`,
		`{"messages":[{"role":"user","content":"x"}],"priority":-3}`, `{`, `[]`, `null`, `{"define":"a","file":"b"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		templates := &Templates{}
		if err := templates.define("known", "{{x}} {{known}}"); err != nil {
			t.Fatal(err)
		}
		it, ok, err := parseLine(raw, templates)
		switch {
		case err != nil && !errors.Is(err, ErrLine):
			t.Fatalf("%v is no ErrLine", err)
		case err != nil || !ok:
		case it.Prompt == "" && len(it.Tokens) == 0 && len(it.Messages) == 0:
			t.Fatal("an empty prompt is accepted")
		case len(it.Prompt) > 2*MaxLineBytes || len(it.Salt) > maxSaltBytes || it.Priority > maxPriority:
			t.Fatal("a limit is passed")
		}
	})
}

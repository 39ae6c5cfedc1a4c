package worker_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/worker"
)

// ask sends a body and returns the status and the answer without what differs from request to request.
func ask(t testing.TB, h http.Handler, path, body string) (status int, answer map[string]any) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
		t.Fatalf("%s %s: %v: %s", path, body, err, rec.Body)
	}
	for _, varies := range []string{"id", "created", "kvtier"} {
		delete(answer, varies)
	}
	if u, ok := answer["usage"].(map[string]any); ok {
		delete(u, "prompt_tokens_details") // the second time a prompt is cached
	}
	return rec.Code, answer
}

// Every documented form of a field means what the plain form means: the answers have the same content.
func TestFormsOfAFieldMeanTheSame(t *testing.T) {
	r := replicaOf(t, tiny(t), nil)
	h := worker.Handler(r, worker.HandlerOptions{Model: "shakespeare"})
	e, _ := r.Resident()
	ids, err := json.Marshal(e.Tokenizer().Encode("a \"b\", [c]"))
	if err != nil {
		t.Fatal(err)
	}
	const text = `"a \"b\", [c]"`
	spaced := strings.ReplaceAll(string(ids), ",", " ,\n ")
	completion := func(field, value string) string {
		return fmt.Sprintf(`{"prompt":%s,"max_tokens":6,"temperature":0%s%s}`, text, field, value)
	}
	chat := func(content string) string {
		return fmt.Sprintf(`{"messages":[{"role":"user","content":%s}],"max_tokens":6,"temperature":0}`, content)
	}
	turn := `{"messages":[{"role":"user","content":"a"}],"max_tokens":3,"temperature":0`
	for field, c := range map[string]struct {
		path, plain string
		forms       []string
	}{
		"prompt": {"/v1/completions", `{"max_tokens":6,"temperature":0,"prompt":` + text + `}`, []string{
			`{"max_tokens":6,"temperature":0,"prompt":[` + text + `]}`,
			`{"max_tokens":6,"temperature":0,"prompt": [ ` + text + ` ] }`,
			`{"max_tokens":6,"temperature":0,"prompt":` + string(ids) + `}`,
			`{"max_tokens":6,"temperature":0,"prompt":` + spaced + `}`,
			`{"max_tokens":6,"temperature":0,"prompt":[` + string(ids) + `]}`,
		}},
		"explained prompt": {"/v1/explain", `{"prompt":` + text + `}`, []string{`{"prompt":[` + text + `]}`, `{"prompt":` + string(ids) + `}`, `{"prompt":[` + string(ids) + `]}`}},
		"no stop":          {"/v1/completions", completion("", ""), []string{completion(`,"stop":`, "null"), completion(`,"stop":`, "[]")}},
		"content":          {"/v1/chat/completions", chat(`"a\"b"`), []string{chat(`[{"type":"text","text":"a\"b"}]`), chat(`[{"type":"text","text":"a"},{"text":"\"b","type":"text"}]`)}},
		"no tools": {"/v1/chat/completions", turn + `}`, []string{
			turn + `,"tool_choice":"none"}`, turn + `,"tool_choice":"auto","tools":[]}`, turn + `,"tool_choice":null,"tools":null,"parallel_tool_calls":true}`,
			turn + `,"response_format":{"type":"text"}}`, turn + `,"modalities":["text"]}`,
		}},
	} {
		status, want := ask(t, h, c.path, c.plain)
		if status != http.StatusOK {
			t.Fatalf("%s: %s: %d %v", field, c.plain, status, want)
		}
		want2 := fmt.Sprint(want)
		for _, form := range c.forms {
			if status, got := ask(t, h, c.path, form); status != http.StatusOK || fmt.Sprint(got) != want2 {
				t.Errorf("%s: %s: %d %v, want what %s gives: %v", field, form, status, got, c.plain, want)
			}
		}
	}
	// A stop string that occurs, in both of its forms.
	_, long := ask(t, h, "/v1/completions", completion("", ""))
	out := long["choices"].([]any)[0].(map[string]any)["text"].(string)
	at := strings.IndexFunc(out[1:], func(c rune) bool { return c > ' ' && c < utf8.RuneSelf })
	if at < 0 {
		t.Fatalf("%q has no character to stop at", out)
	}
	stop, _ := json.Marshal(out[1+at : 2+at])
	_, want := ask(t, h, "/v1/completions", completion(`,"stop":`, string(stop)))
	if fmt.Sprint(want) == fmt.Sprint(long) {
		t.Fatalf("stop %s changes nothing of %v", stop, long)
	}
	for _, form := range []string{`[` + string(stop) + `]`, `["no such text",` + string(stop) + `]`} {
		if _, got := ask(t, h, "/v1/completions", completion(`,"stop":`, form)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("stop %s: %v, want %v", form, got, want)
		}
	}
}

// Errors name fields as the client wrote them, with what they are part of, and types as JSON does.
func TestErrorsSpeakTheClientsWords(t *testing.T) {
	h := worker.Handler(replicaOf(t, tiny(t), nil), worker.HandlerOptions{Model: "shakespeare"})
	for _, c := range []struct{ path, body, param string }{
		{"/v1/completions", `{"prompt":"a","max_tokens":"9"}`, "max_tokens"},
		{"/v1/completions", `{"prompt":"a","max_tokens":1.5}`, "max_tokens"},
		{"/v1/completions", `{"prompt":"a","top_p":[1]}`, "top_p"},
		{"/v1/completions", `{"prompt":"a","min_tokens":99}`, "min_tokens"},
		{"/v1/completions", `{"prompt":"a","ignore_eos":1}`, "ignore_eos"},
		{"/v1/completions", `{"prompt":"a","stream":true,"stream_options":{"usage":true}}`, "stream_options.usage"},
		{"/v1/completions", `{"prompt":"a","Prompt":"b"}`, "Prompt"},
		{"/v1/completions", `{"prompt":"a","prompt":"b"}`, "prompt"},
		{"/v1/completions", `{"prompt":"a","n":9999}`, "n"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"max_completion_tokens":"9"}`, "max_completion_tokens"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"},{"role":"user","text":"a"}]}`, "messages[1].text"},
		{"/v1/chat/completions", `{"messages":[{"role":7,"content":"a"}]}`, "messages[0].role"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"reasoning_effort":7}`, "reasoning_effort"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"reasoning_effort":"high"}`, "reasoning_effort"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"verbosity":"low"}`, "verbosity"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"parallel_tool_calls":"no"}`, "parallel_tool_calls"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"tool_choice":"required"}`, "tool_choice"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_object"}}`, "response_format"},
		{"/v1/warm", `{"tokens":[3,null]}`, "tokens[1]"},
		{"/v1/warm", `{"tokens":["a"]}`, "tokens[0]"},
		{"/v1/warm", `{"prompt":["a"]}`, "prompt"},
		{"/v1/warm", `{"prompt":null,"tokens":[3]}`, "prompt"},
		{"/v1/warm/tokens", `{"prompts":["a",null]}`, "prompts[1]"},
		{"/v1/warm/tokens", `{"conversations":[[{"role":"user","content":null}]]}`, "conversations[0][0].content"},
	} {
		status, answer := ask(t, h, c.path, c.body)
		said, _ := answer["error"].(map[string]any)
		message, _ := said["message"].(string)
		if status != http.StatusBadRequest || said["param"] != c.param || !strings.Contains(message, c.param) {
			t.Errorf("%s %s: %d %v, want param %s, and the message to name it", c.path, c.body, status, answer, c.param)
		}
		for _, goish := range []string{"sampling", "int32", "struct", "unmarshal", "json:", "worker.", "Request"} {
			if strings.Contains(message, goish) {
				t.Errorf("%s %s: %q, which has %q", c.path, c.body, message, goish)
			}
		}
	}
}

// What is in no documented form is refused, and the error names the field and what it is. None of it is answered as another prompt.
func TestFormsThatAreNone(t *testing.T) {
	h := worker.Handler(replicaOf(t, tiny(t), nil), worker.HandlerOptions{Model: "shakespeare"})
	turn := func(content string) string {
		return `{"messages":[{"role":"user","content":` + content + `}],"max_tokens":1}`
	}
	for _, c := range []struct{ path, body, want string }{
		{"/v1/completions", `{"prompt":null}`, "prompt is missing"},
		{"/v1/completions", `{"prompt":""}`, "the prompt is empty"},
		{"/v1/completions", `{"prompt":[""]}`, "the prompt is empty"},
		{"/v1/completions", `{"prompt":[]}`, "prompt is an empty array"},
		{"/v1/completions", `{"prompt":[[]]}`, "the prompt is empty"},
		{"/v1/completions", `{"prompt":[null]}`, "prompt[0] is null"},
		{"/v1/completions", `{"prompt":["a",null]}`, "prompt[1] is null"},
		{"/v1/completions", `{"prompt":[3,null]}`, "prompt[1] is null"},
		{"/v1/completions", `{"prompt":["a",3]}`, "prompt[1] is a number"},
		{"/v1/completions", `{"prompt":[3,"a,b"]}`, "prompt[1] is a string"},
		{"/v1/completions", `{"prompt":[3,[4]]}`, "prompt[1] is an array"},
		{"/v1/completions", `{"prompt":[[3],4]}`, "prompt[1] is a number"},
		{"/v1/completions", `{"prompt":[[3],["a"]]}`, "prompt[1][0] is a string"},
		{"/v1/completions", `{"prompt":[[[3]]]}`, "prompt[0][0] is an array"},
		{"/v1/completions", `{"prompt":{"text":"a"}}`, "prompt is an object"},
		{"/v1/completions", `{"prompt":[{"text":"a"}]}`, "prompt[0] is an object"},
		{"/v1/completions", `{"prompt":true}`, "prompt is a boolean"},
		{"/v1/completions", `{"prompt":[3,-1]}`, "prompt[1] is -1"},
		{"/v1/completions", `{"prompt":[1.5]}`, "prompt[0] is 1.5"},
		{"/v1/completions", `{"prompt":[2147483648]}`, "prompt[0] is 2147483648"},
		{"/v1/completions", `{"prompt":[1e400]}`, "prompt[0] is 1e400"},
		{"/v1/completions", `{"prompt":[3,2147483647]}`, "outside the vocabulary"},
		{"/v1/explain", `{"prompt":null}`, "prompt is missing"},
		{"/v1/explain", `{"prompt":[null]}`, "prompt[0] is null"},
		{"/v1/explain", `{"prompt":["a","b"]}`, "2 prompts"},
		{"/v1/explain", `{"prompt":[""]}`, "the prompt is empty"},
		{"/v1/completions", `{"prompt":"a","stop":7}`, "stop is a number"},
		{"/v1/completions", `{"prompt":"a","stop":[null]}`, "stop[0] is null"},
		{"/v1/completions", `{"prompt":"a","stop":["a",7]}`, "stop[1] is a number"},
		{"/v1/completions", `{"prompt":"a","stop":{"a":1}}`, "stop is an object"},
		{"/v1/chat/completions", turn(`null`), "message 0, of role user, has no content"},
		{"/v1/chat/completions", `{"messages":[{"role":"system"},{"role":"user","content":"a"}]}`, "message 0, of role system, has no content"},
		{"/v1/chat/completions", turn(`7`), "content of a message is a number"},
		{"/v1/chat/completions", turn(`[null]`), "part 0 of a message's content is null"},
		{"/v1/chat/completions", turn(`["a"]`), "part 0 of a message's content is a string"},
		{"/v1/chat/completions", turn(`[{"type":"text"}]`), "part 0 of a message's content has no text"},
		{"/v1/chat/completions", turn(`[{"type":"text","text":null}]`), "part 0 of a message's content has no text"},
		{"/v1/chat/completions", turn(`[{"type":"text","text":"a"},{"type":"image_url"}]`), `part 1 of a message's content has type "image_url"`},
		{"/v1/chat/completions", turn(`[{"text":"a"}]`), "part 0 of a message's content is not understood"},
	} {
		status, answer := ask(t, h, c.path, c.body)
		said, _ := answer["error"].(map[string]any)
		if message, _ := said["message"].(string); status != http.StatusBadRequest || !strings.Contains(message, c.want) || said["type"] != httpapi.TypeInvalidRequest {
			t.Errorf("%s %s: %d %v, want an error that says %q", c.path, c.body, status, answer, c.want)
		}
	}
}

package llamacpp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kvtier/kvtier/internal/testllama"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llamacpp"
)

// spoiler stands between an engine and its server, and answers in its place what a test wants.
type spoiler struct {
	next http.RoundTripper
	do   atomic.Pointer[spoiled]
}

type spoiled struct {
	part   string // of the URL
	answer answer
}

// answer does what a server would do; next is the real one.
type answer func(r *http.Request, next http.RoundTripper) (*http.Response, error)

func (s *spoiler) wrap(next http.RoundTripper) http.RoundTripper {
	s.next = next
	return s
}

func (s *spoiler) RoundTrip(r *http.Request) (*http.Response, error) {
	if do := s.do.Load(); do != nil && strings.Contains(r.URL.String(), do.part) {
		return do.answer(r, s.next)
	}
	return s.next.RoundTrip(r)
}

// on spoils requests whose URL contains part, until off.
func (s *spoiler) on(part string, a answer) { s.do.Store(&spoiled{part, a}) }
func (s *spoiler) off()                     { s.do.Store(nil) }

func say(status int, text string) answer {
	return func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
	}
}

// hang answers nothing until the client leaves.
func hang(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// cut ends the connection in the middle of an answer.
func cut(text string) answer {
	return func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		body := io.MultiReader(strings.NewReader(text), iotest.ErrReader(io.ErrUnexpectedEOF))
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(body), Request: r}, nil
	}
}

// tokensOf is a prompt without meaning.
func tokensOf(n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(300 + i*37%600)
	}
	return out
}

// ask generates greedily in a scope and returns what came out and the sequence, which is closed with the test at the latest.
func ask(t *testing.T, e engine.Engine, scope string, tokens []int32) ([]int32, engine.Sequence, error) {
	t.Helper()
	s, err := e.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if _, err := s.(engine.Resumer).Resume(t.Context(), tokens, func() string { return scope }); err != nil {
		return nil, s, err
	}
	var out []int32
	err = s.(engine.Generator).Generate(t.Context(), tokens[s.Len():], engine.GenerateOptions{MaxTokens: 5}, func(g engine.Generated) bool {
		out = append(out, g.Token)
		return true
	})
	return out, s, err
}

// TestABrokenServerIsAnErrorAndNoMore: the request fails with a reason; the slot is free and the next one succeeds.
func TestABrokenServerIsAnErrorAndNoMore(t *testing.T) {
	server := testllama.Start(t, shipped, "--parallel", "1", "--ctx-size", "1024", "--threads", "1")
	var spoil spoiler
	o := llamacpp.WithTransport(llamacpp.Options{URL: server.URL(), Checkpoint: shipped, SlotsDir: server.SlotsDir, SaveShare: always}, spoil.wrap)
	e := open(t, o)
	tokens := tokensOf(50)
	want, s, err := ask(t, e, "", tokens)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for name, c := range map[string]struct {
		do   answer
		says string
		is   error
	}{
		"garbage":         {say(200, "data: <html>\n\n"), "not understood", llamacpp.ErrServer},
		"nothing":         {say(200, ""), "ended without an end", llamacpp.ErrServer},
		"an error":        {say(500, `{"error":{"message":"out of luck"}}`), "out of luck", llamacpp.ErrServer},
		"a late error":    {say(200, `data: {"error":{"message":"out of memory"}}`+"\n\n"), "out of memory", llamacpp.ErrServer},
		"half an answer":  {say(200, `data: {"content":"x","tokens":[400],"tokens_predicted":1}`+"\n\n"), "ended without an end", llamacpp.ErrServer},
		"foreign tokens":  {say(200, `data: {"content":"x","tokens":[99999],"tokens_predicted":1}`+"\n\n"+`data: {"stop":true,"tokens_predicted":1}`+"\n\n"), "", llamacpp.ErrServer},
		"a broken line":   {cut(`data: {"content":"x","tok`), "not understood", llamacpp.ErrServer},
		"an endless line": {say(200, strings.Repeat("x", 5<<20)), "too long", llamacpp.ErrServer},
	} {
		spoil.on("/completion", c.do)
		_, s, err := ask(t, e, name, tokens)
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", name, err, c.is, c.says)
		}
		s.Close()
		spoil.off()
		got, s, err := ask(t, e, name, tokens)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("after %s: generated %v, error %v, want %v", name, got, err, want)
		}
		s.Close()
	}
	spoil.on("/tokenize", say(200, `{"tokens":[1,2,99999]}`))
	if _, err := e.Tokenizer().(engine.PromptEncoder).EncodePrompt(t.Context(), "x", false); !errors.Is(err, llamacpp.ErrServer) {
		t.Errorf("a token outside the vocabulary: %v, want ErrServer", err)
	}
	spoil.on("/tokenize", say(200, `[`))
	if got := e.Tokenizer().Encode("x"); got != nil {
		t.Errorf("garbage for tokens: %v, want none", got)
	}
}

// TestSlotFilesThatFail: whatever happens to them, requests are answered as if there were no cache.
func TestSlotFilesThatFail(t *testing.T) {
	server := testllama.Start(t, shipped, "--parallel", "1", "--ctx-size", "1024", "--threads", "1")
	var spoil spoiler
	e := open(t, llamacpp.WithTransport(llamacpp.Options{URL: server.URL(), Checkpoint: shipped, SlotsDir: server.SlotsDir, SaveShare: always}, spoil.wrap))
	l, tokens := e.Layout(), tokensOf(100)
	want, src, err := ask(t, e, "first", tokens)
	if err != nil || src.Len() < len(tokens) {
		t.Fatalf("Len is %d, error %v", src.Len(), err)
	}
	parts := make([][]byte, 6)
	for i := range parts {
		parts[i] = make([]byte, l.PartBytes(l.Part(0)))
		if err := src.Export(i*l.BlockTokens, l.Part(0), parts[i]); err != nil {
			t.Fatal(err)
		}
	}
	src.Close()
	// afterSave changes what the server has just written.
	afterSave := func(change func(path string) error) answer {
		return func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			if err != nil {
				return nil, err
			}
			b, err := io.ReadAll(resp.Body) // then the file is complete
			resp.Body.Close()
			resp.Body = io.NopCloser(bytes.NewReader(b))
			files, _ := filepath.Glob(filepath.Join(server.SlotsDir, "*"))
			for _, f := range files {
				if err := change(f); err != nil {
					t.Error(err)
				}
			}
			return resp, err
		}
	}
	version := func(path string) error {
		b, err := os.ReadFile(path)
		if err == nil {
			binary.LittleEndian.PutUint32(b[4:], 5)
			err = os.WriteFile(path, b, 0o644)
		}
		return err
	}
	for name, c := range map[string]struct {
		part string
		do   answer
	}{
		"restore refused":             {"action=restore", say(400, `{"error":{"message":"no"}}`)},
		"restore takes fewer":         {"action=restore", say(200, `{"n_restored":3}`)},
		"restore breaks off":          {"action=restore", cut("{")},
		"save refused":                {"action=save", say(500, "disk full")},
		"save writes nothing":         {"action=save", say(200, `{"n_saved":104}`)},
		"save breaks off":             {"action=save", cut("{")},
		"save writes a later version": {"action=save", afterSave(version)},
		"save writes half":            {"action=save", afterSave(func(path string) error { return os.Truncate(path, 5000) })},
		"save writes nothing at all":  {"action=save", afterSave(func(path string) error { return os.Truncate(path, 0) })},
	} {
		failed := e.Stats().Failed
		spoil.on(c.part, c.do)
		s, err := e.NewSequence()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.(engine.Resumer).Resume(t.Context(), tokens, func() string { return name }); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i, kv := range parts {
			if err := s.Import(i*l.BlockTokens, l.Part(0), kv); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Skip(6 * l.BlockTokens); err != nil {
			t.Fatal(err)
		}
		var got []int32
		err = s.(engine.Generator).Generate(t.Context(), tokens[s.Len():], engine.GenerateOptions{MaxTokens: 30}, func(g engine.Generated) bool {
			got = append(got, g.Token)
			return true
		})
		if err != nil || !slices.Equal(got[:5], want) {
			t.Errorf("%s: generated %v, error %v, want %v", name, got, err, want)
		}
		if e.Stats().Failed == failed {
			t.Errorf("%s: no failure was counted", name)
		}
		if c.part == "action=save" && s.Len() != 6*l.BlockTokens {
			t.Errorf("%s: Len is %d, want the imported %d", name, s.Len(), 6*l.BlockTokens)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
		spoil.off()
	}
	if got, _, err := ask(t, e, "last", tokens); err != nil || !slices.Equal(got, want) {
		t.Errorf("after all: generated %v, error %v, want %v", got, err, want)
	}
	if why := e.Degraded(); why != "" {
		t.Errorf("degraded: %s", why)
	}
	if left, err := os.ReadDir(server.SlotsDir); err != nil || len(left) > 0 {
		t.Errorf("files left in the slot directory: %v (error %v)", left, err)
	}
}

// TestServersThatCannotCache are served from all the same, and say why they have no cache.
func TestServersThatCannotCache(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"V transposed":     {[]string{"--flash-attn", "off"}, "--flash-attn on"},
		"quantised K/V":    {[]string{"--cache-type-k", "q8_0", "--cache-type-v", "q8_0"}, "--cache-type-k f16"},
		"another slot dir": {nil, "is that its --slot-save-path?"},
		"no slot dir":      {nil, "no slot directory is given"},
	} {
		t.Run(name, func(t *testing.T) {
			server := testllama.Start(t, shipped, append(c.args, "--parallel", "1", "--ctx-size", "512", "--threads", "1")...)
			o := llamacpp.Options{URL: server.URL(), Checkpoint: shipped, SlotsDir: server.SlotsDir}
			switch name {
			case "another slot dir":
				o.SlotsDir = t.TempDir()
			case "no slot dir":
				o.SlotsDir = ""
			}
			e := open(t, o)
			if !strings.Contains(e.Degraded(), c.says) {
				t.Errorf("degraded: %q, want it to say %q", e.Degraded(), c.says)
			}
			if err := e.Layout().Validate(); err != nil {
				t.Error(err)
			}
			got, s, err := ask(t, e, "scope", tokensOf(50))
			if err != nil || len(got) == 0 || s.Len() != 0 {
				t.Errorf("generated %v, Len %d, error %v", got, s.Len(), err)
			}
		})
	}
}

// TestRestart: a server that comes back as it was is used again; one with other weights, although file name and shape are the same, is not
// trusted, until it is again what it was.
func TestRestart(t *testing.T) {
	dirs := [2]string{t.TempDir(), t.TempDir()}
	var models [2][]byte
	for i := range models {
		b, err := os.ReadFile(fmt.Sprintf("../../models/shakespeare-3m-v%d.gguf", i+1))
		if err != nil {
			t.Fatal(err)
		}
		models[i] = b
	}
	// the server's file and the worker's, of one name: on two machines, perhaps
	served, own := filepath.Join(dirs[0], "model.gguf"), filepath.Join(dirs[1], "model.gguf")
	for _, path := range []string{served, own} {
		if err := os.WriteFile(path, models[0], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	server := testllama.Start(t, served, "--parallel", "2", "--ctx-size", "2048", "--threads", "1")
	e := open(t, llamacpp.Options{URL: server.URL(), Checkpoint: own, SlotsDir: server.SlotsDir, SaveShare: always})
	tokens := tokensOf(100)
	want, s, err := ask(t, e, "a", tokens)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()

	server.Kill()
	if _, s, err := ask(t, e, "a", tokens); !errors.Is(err, llamacpp.ErrServer) {
		t.Fatalf("without a server: %v, want ErrServer", err)
	} else {
		s.Close()
	}
	server.Restart()
	got, s, err := ask(t, e, "a", tokens)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("after a restart: generated %v, error %v, want %v", got, err, want)
	}
	s.Close()
	if why := e.Degraded(); why != "" {
		t.Fatalf("after a restart: %s", why)
	}
	if _, s, _ := ask(t, e, "a", tokens); s.Len() == 0 {
		t.Error("after a restart nothing is exported")
	} else {
		s.Close()
	}

	server.Kill()
	if err := os.WriteFile(served, models[1], 0o644); err != nil {
		t.Fatal(err)
	}
	server.Restart()
	got, s, err = ask(t, e, "a", tokens)
	if err != nil || s.Len() != 0 {
		t.Errorf("other weights: Len is %d, error %v", s.Len(), err)
	}
	s.Close()
	if slices.Equal(got, want) {
		t.Error("other weights generate the same: the test needs others")
	}
	if !strings.Contains(e.Degraded(), "does not compute what it did") {
		t.Errorf("other weights: degraded is %q", e.Degraded())
	}

	server.Kill()
	if err := os.WriteFile(served, models[0], 0o644); err != nil {
		t.Fatal(err)
	}
	server.Restart()
	if got, _, err = ask(t, e, "a", tokens); err != nil || !slices.Equal(got, want) || e.Degraded() != "" {
		t.Errorf("back: generated %v, error %v, degraded %q, want %v", got, err, e.Degraded(), want)
	}
}

// TestASilentServer: whoever waits for it is told so, in time.
func TestASilentServer(t *testing.T) {
	server := testllama.Start(t, shipped, "--parallel", "1", "--ctx-size", "1024", "--threads", "1")
	var spoil spoiler
	e := open(t, llamacpp.WithTransport(llamacpp.Options{URL: server.URL(), Checkpoint: shipped, SlotsDir: server.SlotsDir, SaveShare: always,
		CallTimeout: 3 * time.Second, StallTimeout: 3 * time.Second}, spoil.wrap))
	tokens := tokensOf(50)
	for part, says := range map[string]string{"/completion": "silent", "/props": "no answer within 3s", "action=save": ""} {
		spoil.on(part, hang)
		time.Sleep(30 * time.Millisecond) // longer than an answer of the server holds
		_, s, err := ask(t, e, part, tokens)
		if says == "" && err != nil || says != "" && (!errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s hangs: %v, want it to say %q", part, err, says)
		}
		s.Close()
		spoil.off()
		if _, s, err = ask(t, e, part, tokens); err != nil {
			t.Errorf("after %s: %v", part, err)
		}
		s.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	spoil.on("/completion", hang)
	time.AfterFunc(50*time.Millisecond, cancel)
	s, err := e.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.(engine.Generator).Generate(ctx, tokens, engine.GenerateOptions{MaxTokens: 1}, func(engine.Generated) bool { return true })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a client that left: %v, want context.Canceled", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := llamacpp.Open(t.Context(), llamacpp.Options{URL: "ftp://x", Checkpoint: shipped}); err == nil || !strings.Contains(err.Error(), "http://") {
		t.Errorf("a wrong URL: %v", err)
	}
	if _, err := llamacpp.Open(t.Context(), llamacpp.Options{URL: "http://127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "Checkpoint is missing") {
		t.Errorf("no checkpoint: %v", err)
	}
	if _, err := llamacpp.Open(t.Context(), llamacpp.Options{URL: "http://127.0.0.1:1", Checkpoint: shipped, Wait: time.Millisecond}); !errors.Is(err, llamacpp.ErrServer) {
		t.Errorf("no server: %v, want ErrServer", err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"hello":"world"}`) }))
	defer srv.Close()
	if _, err := llamacpp.Open(t.Context(), llamacpp.Options{URL: srv.URL, Checkpoint: shipped, Wait: time.Millisecond}); !errors.Is(err, llamacpp.ErrServer) {
		t.Errorf("no llama-server: %v, want ErrServer", err)
	}
	server := testllama.Start(t, shipped, "--parallel", "1", "--ctx-size", "512", "--threads", "1")
	other := "../../models/shakespeare-3m-v1.gguf"
	if _, err := llamacpp.Open(t.Context(), llamacpp.Options{URL: server.URL(), Checkpoint: other}); err == nil || !strings.Contains(err.Error(), "has loaded") {
		t.Errorf("another file: %v", err)
	}
}

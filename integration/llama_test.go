package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testllama"
	"github.com/kvtier/kvtier/internal/testredis"
)

const llamaModel = "../models/shakespeare-3m-v2.gguf"

// llamaArgs are those of every server of these tests: few threads, because they share a machine.
var llamaArgs = []string{"--parallel", "2", "--ctx-size", "4096", "--threads", "1", "--cache-ram", "0"}

// startLlamaWorker runs a worker beside a llama-server.
func startLlamaWorker(t testing.TB, server *testllama.Server, redis string, more ...string) *process {
	t.Helper()
	args := []string{"worker", "--engine", "llamacpp", "--llama-url", server.URL(), "--checkpoint", llamaModel, "--slots-dir", server.SlotsDir, "--redis", redis}
	return start(t, append(args, more...)...)
}

// scene is a prompt of some 700 tokens, and a question at its end.
func scene(t testing.TB, end string) string {
	t.Helper()
	b, err := os.ReadFile("../cmd/kvtier/prompts/scene.txt")
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:min(len(b), 1700)]) + end
}

// awaitStored waits until a worker has stored so many blocks, of one part each.
func (p *process) awaitStored(r *testredis.Redis, blocks int) {
	p.t.Helper()
	opts, err := redis.ParseURL(r.URL())
	if err != nil {
		p.t.Fatal(err)
	}
	c := redis.NewClient(opts)
	defer c.Close()
	p.await("done with storing", 30*time.Second, func() bool { return c.DBSize(p.t.Context()).Val() >= int64(blocks) })
}

// promptTokens is how many prompt tokens a worker's llama-server says that it has found in its slots, and computed.
func (p *process) promptTokens() (found, computed int) {
	p.t.Helper()
	return int(p.metric(`kvtier_llama_prompt_tokens_total{source="slot"}`)), int(p.metric(`kvtier_llama_prompt_tokens_total{source="computed"}`))
}

// metric reads one number of /metrics.
func (p *process) metric(name string) (v float64) {
	p.t.Helper()
	resp, err := http.Get(p.url + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(text, &v); err != nil {
				p.t.Fatal(err)
			}
			return v
		}
	}
	p.t.Fatalf("/metrics has no %s", name)
	return 0
}

// withoutCache asks a llama-server itself.
func withoutCache(t testing.TB, server *testllama.Server, prompt string) (out struct {
	Tokens  []int32
	Timings struct {
		Milliseconds float64 `json:"prompt_ms"`
	}
}) {
	t.Helper()
	body, _ := json.Marshal(map[string]any{"prompt": prompt, "n_predict": 8, "temperature": 0, "samplers": []string{"temperature"}, "cache_prompt": false, "return_tokens": true})
	resp, err := http.Post(server.URL()+"/completion", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLlamaServersShareThroughRedis: what an unmodified llama-server has computed, another one does not compute again, and says the same.
func TestLlamaServersShareThroughRedis(t *testing.T) {
	shared := testredis.Start(t)
	a, b := testllama.Start(t, llamaModel, llamaArgs...), testllama.Start(t, llamaModel, llamaArgs...)
	workers := []*process{startLlamaWorker(t, a, shared.URL()), startLlamaWorker(t, b, shared.URL())}
	prompt := scene(t, "\nPETRUCHIO:\n")
	want := withoutCache(t, a, prompt)

	first := workers[0].complete(prompt)
	if first.Usage.Details.Cached != 0 || first.Usage.PromptTokens < 600 {
		t.Fatalf("the first request: %+v, want more than 600 tokens and none cached", first.Usage)
	}
	workers[0].awaitStored(shared, first.Usage.PromptTokens/16)
	second := workers[1].complete(prompt)
	tail := second.Usage.PromptTokens - second.Usage.Details.Remote
	if tail > 16 {
		t.Errorf("worker 2 took %d of %d prompt tokens from Redis", second.Usage.Details.Remote, second.Usage.PromptTokens)
	}
	if found, computed := workers[1].promptTokens(); found != second.Usage.Details.Remote || computed != tail {
		t.Errorf("llama-server B found %d tokens and computed %d, want %d and %d", found, computed, second.Usage.Details.Remote, tail)
	}
	for i, got := range []answer{first, second} {
		if !slices.Equal(got.Choices[0].TokenIDs, want.Tokens) {
			t.Errorf("worker %d: tokens %v, llama-server alone %v", i+1, got.Choices[0].TokenIDs, want.Tokens)
		}
	}
	t.Logf("prompt of %d tokens: first token after %.1f ms on server A, %.1f ms on server B: ratio %.2f",
		first.Usage.PromptTokens, first.KVTier.TTFT, second.KVTier.TTFT, second.KVTier.TTFT/first.KVTier.TTFT)

	// Another end of the same scene, twice: the slot that holds the scene serves it, nothing is moved.
	for range 2 {
		prompt := scene(t, "\nKATHARINA:\n")
		got, want := workers[1].complete(prompt), withoutCache(t, a, prompt)
		if got.Usage.Details.Hot < 600 || !slices.Equal(got.Choices[0].TokenIDs, want.Tokens) {
			t.Errorf("%d of %d tokens from the slot, tokens %v, want %v", got.Usage.Details.Hot, got.Usage.PromptTokens, got.Choices[0].TokenIDs, want.Tokens)
		}
	}
	// Tenants do not find each other's K/V, not even in the server's slots.
	before, _ := workers[1].promptTokens()
	for _, prompt := range []string{prompt, scene(t, "\nKATHARINA:\n")} { // as many as there are slots
		got := askSalted(t, workers[1], prompt, prompt)
		if after, _ := workers[1].promptTokens(); got.Usage.Details.Cached != 0 || after != before {
			t.Errorf("another tenant: %d cached tokens, llama-server found %d", got.Usage.Details.Cached, after-before)
		}
	}
	// A warm-up on one is a hit on the other, at once: it answers when everything is stored.
	warm := scene(t, "\nBAPTISTA:\n")[400:]
	body, _ := json.Marshal(map[string]any{"prompt": warm})
	resp, err := http.Post(workers[0].url+"/v1/warm", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Errorf("warm-up: %s %s", resp.Status, b)
	}
	if got := workers[1].complete(warm); got.Usage.Details.Remote < 400 {
		t.Errorf("after a warm-up worker 2 took %d of %d prompt tokens from Redis", got.Usage.Details.Remote, got.Usage.PromptTokens)
	}
	for i, w := range workers {
		if code := w.terminate(); code != 0 {
			t.Errorf("worker %d ended with exit code %d on SIGTERM\n%s", i+1, code, w.log.String())
		}
	}
}

func askSalted(t testing.TB, p *process, prompt, salt string) (a answer) {
	t.Helper()
	body, _ := json.Marshal(map[string]any{"prompt": prompt, "max_tokens": 4, "temperature": 0, "cache_salt": salt})
	resp, err := http.Post(p.url+"/v1/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestLlamaServerKilledAndRestarted: requests fail with a reason while it is away, and only then; afterwards K/V is found again.
func TestLlamaServerKilledAndRestarted(t *testing.T) {
	shared := testredis.Start(t)
	server := testllama.Start(t, llamaModel, llamaArgs...)
	w := startLlamaWorker(t, server, shared.URL())
	prompt := scene(t, "\nPETRUCHIO:\n")
	want := w.complete(prompt)
	server.Kill()
	began := time.Now()
	_, err := w.tryComplete(prompt)
	if err == nil || !strings.Contains(err.Error(), "llama-server") || !strings.HasPrefix(err.Error(), "5") {
		t.Errorf("without a server: %v, want a status of 5xx that names llama-server", err)
	}
	t.Logf("without a server: %v after %v", err, time.Since(began).Round(time.Millisecond))
	server.Restart()
	got := w.complete(prompt)
	if !slices.Equal(got.Choices[0].TokenIDs, want.Choices[0].TokenIDs) || got.Usage.PromptTokens-got.Usage.Details.Cached > 16 {
		t.Errorf("after a restart: tokens %v with %+v, want %v", got.Choices[0].TokenIDs, got.Usage, want.Choices[0].TokenIDs)
	}
	if found, _ := w.promptTokens(); found != got.Usage.Details.Cached {
		t.Errorf("after a restart: llama-server found %d tokens, the worker counts %d", found, got.Usage.Details.Cached)
	}
	if s := w.status(); s != "ready" {
		t.Errorf("after a restart: status %s", s)
	}
}

// TestLlamaSlotDirectoryFull: a directory without room costs the sharing, never a request. /readyz does not call that degraded: the
// next request may find room again.
func TestLlamaSlotDirectoryFull(t *testing.T) {
	slots := t.TempDir()
	if err := syscall.Mount("tmpfs", slots, "tmpfs", 0, "size=800k,mode=0777"); err != nil {
		t.Skipf("a directory of its own size needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(slots, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	shared := testredis.Start(t)
	server, roomy := testllama.StartWith(t, llamaModel, slots, llamaArgs...), testllama.Start(t, llamaModel, llamaArgs...)
	w, other := startLlamaWorker(t, server, shared.URL()), startLlamaWorker(t, roomy, shared.URL())
	prompt := scene(t, "\nPETRUCHIO:\n")
	want := withoutCache(t, roomy, prompt)
	// too long to be written down
	if got := w.complete(prompt); !slices.Equal(got.Choices[0].TokenIDs, want.Tokens) {
		t.Errorf("without room: tokens %v, want %v", got.Choices[0].TokenIDs, want.Tokens)
	}
	// found in Redis, and too long to be written for the server
	stored := other.complete(prompt).Usage.PromptTokens / 16
	other.awaitStored(shared, stored)
	if got := askSalted(t, w, "KATHARINA:\nGood morrow.\n", "displace the scene"); len(got.Choices) != 1 {
		t.Error("a short prompt is not answered")
	}
	if got := w.complete(prompt + "\n"); len(got.Choices[0].TokenIDs) == 0 {
		t.Error("no tokens")
	}
	// what is short enough is shared
	short := "PETRUCHIO:\n" + strings.Repeat("Kiss me, Kate. ", 4)
	w.awaitStored(shared, stored+w.complete(short).Usage.PromptTokens/16)
	if got := other.complete(short); got.Usage.Details.Remote == 0 {
		t.Errorf("a short prompt is not shared: %+v", got.Usage)
	}
	if !strings.Contains(w.log.String(), "not read back") {
		t.Errorf("the log does not say that a slot file could not be had:\n%s", w.log.String())
	}
	left, err := filepath.Glob(filepath.Join(slots, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("files left: %v (error %v)", left, err)
	}
}

// TestLlamaServerOfAnotherVersion: a worker whose server changes its version under it serves on, without a cache, and says so.
func TestLlamaServerOfAnotherVersion(t *testing.T) {
	shared := testredis.Start(t)
	server := testllama.Start(t, llamaModel, llamaArgs...)
	version := "b11669-Debian"
	front, hangUp := newFront(t, server.URL(), func(path string, b []byte) []byte {
		if path == "/props" {
			b = bytes.ReplaceAll(b, []byte("b11669-Debian"), []byte(version))
			b = bytes.Replace(b, []byte(`"total_slots":2`), fmt.Appendf(nil, `"total_slots":%d`, 2+len(version)-len("b11669-Debian")), 1)
			b = bytes.ReplaceAll(b, []byte("<__media_"), []byte("<__media_"+version)) // every process draws its own
		}
		return b
	})
	w := start(t, "worker", "--engine", "llamacpp", "--llama-url", front, "--checkpoint", llamaModel, "--slots-dir", server.SlotsDir, "--redis", shared.URL())
	complete := func() (a answer) { // the front loses the end of an answer now and then, whatever the version
		w.await("answered", 20*time.Second, func() bool {
			var err error
			a, err = w.tryComplete(speech)
			return err == nil
		})
		return a
	}
	want := complete()
	if complete().Usage.Details.Cached == 0 {
		t.Fatal("the first version: nothing is cached")
	}
	version = "b99999-Debian!" // with one slot more
	hangUp()                   // as a process does that ends
	got := complete()
	if !slices.Equal(got.Choices[0].TokenIDs, want.Choices[0].TokenIDs) || got.Usage.Details.Hot != 0 {
		t.Errorf("another version: tokens %v with %+v, want %v", got.Choices[0].TokenIDs, got.Usage, want.Choices[0].TokenIDs)
	}
	if s := w.status(); s != "degraded" {
		t.Errorf("another version: status %s, want degraded", s)
	}
	resp, err := http.Get(w.url + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); !bytes.Contains(b, []byte("restart the worker")) {
		t.Errorf("/readyz: %s", b)
	}
}

// newFront is an HTTP server that passes everything on to another, and changes answers.
func newFront(t testing.TB, to string, change func(path string, b []byte) []byte) (address string, hangUp func()) {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	p := httputil.NewSingleHostReverseProxy(target)
	p.Transport = &http.Transport{DisableKeepAlives: true}
	p.FlushInterval = -1
	p.ModifyResponse = func(r *http.Response) error {
		if r.Request.URL.Path == "/completion" {
			return nil
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		r.Body.Close()
		b = change(r.Request.URL.Path, b)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		r.Header.Set("Content-Length", fmt.Sprint(len(b)))
		return nil
	}
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	return s.URL, s.CloseClientConnections
}

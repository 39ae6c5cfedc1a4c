package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/coordinator"
)

// TestBadManifestsAreRefusedAtOnce: with the line and the reason, by HTTP and on the command line, and no job is left behind.
func TestBadManifestsAreRefusedAtOnce(t *testing.T) {
	srv := miniredis.RunT(t)
	c, err := startCoordinator(coordinatorOptions{redis: "redis://" + srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hs := httptest.NewServer(c.Handler(""))
	defer hs.Close()
	words := strings.Repeat("ab", 32)
	if code, _, stderr := kvtier(t, "model", "--coordinator", hs.URL, "register", "m", "--weights", words, "--layout", words, "--activate"); code != exitOK {
		t.Fatal(stderr)
	}
	for body, want := range map[string]string{
		`{"model":"m","manifest":"hello"}`:                                            `manifest: line 1: broken line: it is not JSON`,
		`{"model":"m","manifest":"\nid,prompt\n1,a"}`:                                 `manifest: line 2: broken line: it is not JSON`,
		`{"model":"m","manifest":"{\"Prompt\":\"a\"}"}`:                               `the case counts, it is called prompt`,
		`{"model":"m","strict":true,"manifest":"{\"prompt\":\"a\"}\n{\"prompt\":5}"}`: `manifest: line 2: broken line: prompt is a JSON number, want a string`,
		`{"model":"m","manifest":null}`:                                               `manifest is null, want a string`,
		`{"model":"m","manifest":"{\"prompt\":\"a\"}","budget_bytes":"1GiB"}`:         `"budget_bytes is a JSON string, want a whole number"`,
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", hs.URL+"/v1/warmups", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hs.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusBadRequest || !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s: %d %s, want 400, %s", body, resp.StatusCode, b, want)
		}
	}
	file := filepath.Join(t.TempDir(), "m.jsonl")
	if err := os.WriteFile(file, []byte("{\"prompt\":\"a\"}\nhello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := kvtier(t, "warmup", "submit", file, "--model", "m", "--coordinator", hs.URL)
	if code != exitUsage || !strings.Contains(stderr, "m.jsonl: line 2: broken line: it is not JSON") {
		t.Errorf("warmup submit: %d %s", code, stderr)
	}
	cl, err := coordinator.NewClient(coordinator.ClientOptions{URL: hs.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if jobs, err := cl.Warmups(t.Context()); err != nil || len(jobs) != 0 {
		t.Errorf("%d jobs, %v: a refused manifest has made one", len(jobs), err)
	}
}

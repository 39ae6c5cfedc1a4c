package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func writeModel(t *testing.T, dir, name string, seed uint64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, llamatest.Random(llamatest.Config{Seed: seed}).Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A running worker loads a checkpoint that appears in its directory; nothing outside of it can be named.
func TestModelLoad(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	t.Setenv("HOME", t.TempDir())
	first := writeModel(t, outside, "first.gguf", 1)
	secret := writeModel(t, outside, "secret.gguf", 2)
	if err := os.Symlink(secret, filepath.Join(dir, "link.gguf")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	lo := llama.Options{}
	o := nodeOptions{model: "m", checkpoints: fileCheckpoints([]string{first}, lo), logger: slog.New(slog.DiscardHandler), sequences: 2, ttl: time.Hour}
	n, err := startNode(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	l := loader{given: o.checkpoints, dir: dir, opts: lo}
	s := httptest.NewServer(worker.Handler(n.replica, worker.HandlerOptions{Model: "m", Token: "t", Load: func(ctx context.Context, name string) (worker.Loaded, error) {
		return n.load(ctx, l, o, name)
	}}))
	defer s.Close()
	ask := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := run(t.Context(), append([]string{"model", "load", "--worker", s.URL}, args...), &out, &out)
		return code, out.String()
	}
	before, _ := n.replica.Resident()
	id := before.Identity()
	for _, bad := range []string{"../secret.gguf", secret, "link.gguf", "notes.txt", "none.gguf", ".", "..", "a/b.gguf", "", "first.gguf/../first.gguf", "x\x00.gguf"} {
		if code, out := ask("--worker-token", "t", "--", bad); code == exitOK {
			t.Errorf("loaded %q: %s", bad, out)
		}
	}
	if _, err := l.find("../secret.gguf"); !errors.Is(err, worker.ErrCheckpoint) {
		t.Errorf("find: %v", err)
	}
	next := writeModel(t, dir, "step-900.gguf", 3)
	if code, out := ask("step-900.gguf"); code != exitFailed || !strings.Contains(out, "401") {
		t.Errorf("without a token: exit code %d: %s", code, out)
	}
	if e, _ := n.replica.Resident(); e.Identity() != id {
		t.Fatal("a refused request changed the weights")
	}
	code, out := ask("--worker-token", "t", "step-900.gguf")
	if code != exitOK || !strings.Contains(out, "step-900") || !strings.Contains(out, "yes") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	want, err := llama.Identify(next, lo)
	if err != nil {
		t.Fatal(err)
	}
	if e, label := n.replica.Resident(); e.Identity() != want || label != "step-900" {
		t.Errorf("resident %s %v, want %v", label, e.Identity().Weights.Short(), want.Weights.Short())
	}
	if code, out := ask("--worker-token", "t", "first"); code != exitOK { // back, by label
		t.Errorf("exit code %d: %s", code, out)
	}
}

// A checkpoint whose file is not what its note says is not served: loading compares with what was announced.
func TestAReplacedCheckpointIsRefused(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", t.TempDir())
	path := writeModel(t, dir, "a.gguf", 1)
	id, err := llama.Identify(path, llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := worker.Checkpoint{Label: "a", Identity: id, Open: fileCheckpoints([]string{path}, llama.Options{})[0].open}.Verified()
	e, err := c.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e.Close()
	writeModel(t, dir, "a.gguf", 2)
	if _, err := c.Open(t.Context()); !errors.Is(err, worker.ErrChanged) {
		t.Errorf("got %v, want ErrChanged", err)
	}
}

package main

import (
	"strings"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/llama"
)

// However a checkpoint's identity is learnt, from its bytes, a note, or a look at the file, a worker that quantises names the same one, and
// it is never that of a worker which does not.
func TestQuantisedCheckpointsAreOfAnotherLayout(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	file := writeModel(t, t.TempDir(), "a.gguf", 1)
	exact, err := identityOf(file, 0, block.QuantNone)
	if err != nil {
		t.Fatal(err)
	}
	want, err := identityOf(file, 0, block.QuantInt8)
	if err != nil {
		t.Fatal(err)
	}
	if want.Weights != exact.Weights || want.Layout == exact.Layout {
		t.Fatalf("quantised %v, exact %v: want the same weights in another layout", want, exact)
	}
	c := quantised(fileCheckpoints([]string{file}, llama.Options{}), block.QuantInt8)[0]
	e, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from the note
		if id, _, err := c.identify(); err != nil || id != want {
			t.Errorf("identify: %v, %v; want %v", id, err, want)
		}
	}
	if id, err := c.recheck(); err != nil || id != want || e.Identity() != want {
		t.Errorf("recheck: %v, %v; the engine: %v; want %v", id, err, e.Identity(), want)
	}
}

func TestFormsOfKVAreChecked(t *testing.T) {
	for flags, want := range map[string]string{
		"--kv-quant int4":                   `"int4", want none or int8`,
		"--encoding zstd":                   `"zstd", want raw or planes`,
		"--encoding planes --kv-quant int8": "exclude each other",
	} {
		code, _, stderr := kvtier(t, append([]string{"worker"}, strings.Fields(flags)...)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %q; want 2 and %q", flags, code, stderr, want)
		}
	}
}

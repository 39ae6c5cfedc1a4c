package llama_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func modelFile(t testing.TB, seed uint64) string {
	t.Helper()
	t.Setenv("HOME", t.TempDir()) // no notes in the developer's cache directory
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	path := filepath.Join(t.TempDir(), "m.gguf")
	write(t, path, llamatest.Random(llamatest.Config{Seed: seed}).Bytes(), time.Now().Add(-time.Hour))
	return path
}

func write(t testing.TB, path string, b []byte, at time.Time) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// The identity without loading is the identity of what is loaded, at any number of threads.
func TestIdentifyAgreesWithOpen(t *testing.T) {
	for _, typ := range []uint32{0, 1, 2, 8, 14, 30} {
		b := llamatest.Random(llamatest.Config{Seed: 3, Type: typ, Heads: 2, HeadDim: 128, FFN: 256}).Bytes()
		for _, o := range []llama.Options{{}, {BlockTokens: 32, Threads: 1}} {
			m, err := llama.OpenReader(bytes.NewReader(b), int64(len(b)), "m", o)
			if err != nil {
				t.Fatal(err)
			}
			id, err := llama.IdentifyReader(bytes.NewReader(b), int64(len(b)), o)
			if err != nil || id != m.Identity() {
				t.Errorf("type %d: identified %v, loaded %v (%v)", typ, id, m.Identity(), err)
			}
			m.Close()
		}
	}
}

// A note is used for the state of the file that it describes, and for no other.
func TestNotesAreForOneStateOfAFile(t *testing.T) {
	path := modelFile(t, 1)
	id, noted, err := llama.IdentifyNoted(path, llama.Options{})
	if err != nil || noted {
		t.Fatalf("first time: noted %v, %v", noted, err)
	}
	again, noted, err := llama.IdentifyNoted(path, llama.Options{})
	if err != nil || !noted || again != id {
		t.Fatalf("second time: noted %v, %v, %v; want %v", noted, err, again, id)
	}
	if other, _, _ := llama.IdentifyNoted(path, llama.Options{BlockTokens: 8}); other.Weights != id.Weights || other.Layout == id.Layout {
		t.Errorf("another block size: %v, with the default %v", other, id)
	}
	changed := llamatest.Random(llamatest.Config{Seed: 2}).Bytes()
	write(t, path, changed, time.Now().Add(-30*time.Minute)) // in place: the same inode and size, another time
	next, noted, err := llama.IdentifyNoted(path, llama.Options{})
	if err != nil || noted || next == id {
		t.Errorf("after a change: noted %v, %v, same identity %v", noted, err, next == id)
	}
	write(t, path, changed, time.Now()) // written just now: its time tells nothing yet
	llama.ForgetNote(path)
	for range 2 {
		if _, noted, _ := llama.IdentifyNoted(path, llama.Options{}); noted {
			t.Error("a file that was written just now was noted")
		}
	}
}

// A forged or damaged note can mislead IdentifyNoted, never Identify, and never an engine.
func TestNotesAreClaimsOnly(t *testing.T) {
	path := modelFile(t, 1)
	id, _, err := llama.IdentifyNoted(path, llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, llamatest.Random(llamatest.Config{Seed: 2}).Bytes(), st.ModTime()) // whoever keeps inode, size and time the same
	claim, noted, err := llama.IdentifyNoted(path, llama.Options{})
	if err != nil || !noted || claim != id {
		t.Fatalf("the forgery does not mislead: noted %v, %v", noted, err)
	}
	truth, err := llama.Identify(path, llama.Options{})
	if err != nil || truth == claim {
		t.Errorf("Identify believed the note (%v)", err)
	}
	m, err := llama.Open(path, llama.Options{})
	if err != nil || m.Identity() != truth {
		t.Errorf("the engine believed the note (%v)", err)
	}
	for _, junk := range []string{"", "{}", "[[[[", `{"v":1,"weights":"zz"}`} {
		if err := os.WriteFile(path+llama.DigestSuffix, []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, noted, err := llama.IdentifyNoted(path, llama.Options{}); err != nil || noted || got != truth {
			t.Errorf("note %q: noted %v, %v", junk, noted, err)
		}
		llama.ForgetNote(path)
	}
}

// BenchmarkDigest is the rate of identification from memory.
func BenchmarkDigest(b *testing.B) {
	file := llamatest.Random(llamatest.Config{Seed: 1, Layers: 8, Heads: 16, KVHeads: 8, HeadDim: 64, FFN: 4096, Type: 1}).Bytes()
	for _, threads := range []int{1, 2} {
		b.Run(map[int]string{1: "threads=1", 2: "threads=2"}[threads], func(b *testing.B) {
			b.SetBytes(int64(len(file)))
			for b.Loop() {
				if _, err := llama.IdentifyReader(bytes.NewReader(file), int64(len(file)), llama.Options{Threads: threads}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

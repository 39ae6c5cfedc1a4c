package llama_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func TestTokenizerAnyText(t *testing.T) {
	tok := openEmbedded(t, models.Default, llama.Options{}).Tokenizer()
	for _, text := range []string{
		"\xff\xfe", "a\xe4\xbd", strings.Repeat("\xff", 4096), "▁", // U+2581 stands for a space and comes back as one
		strings.Repeat(" ", 100), strings.Repeat("the ", 50), "<s>", "</s><unk>", "<0x41>",
	} {
		want := strings.ReplaceAll(text, "▁", " ")
		if got := tok.Decode(tok.Encode(text)); got != want {
			t.Errorf("%q came back as %q", text, got)
		}
	}
}

func FuzzTokenizer(f *testing.F) {
	tok := openEmbedded(f, models.Default, llama.Options{}).Tokenizer()
	f.Add("ROMEO:\nBut soft, what light")
	f.Add("\xff▁ \x00")
	f.Fuzz(func(t *testing.T, text string) {
		if got, want := tok.Decode(tok.Encode(text)), strings.ReplaceAll(text, "▁", " "); got != want {
			t.Errorf("%q came back as %q", text, got)
		}
	})
}

// Time for text grows about linearly, also where everything merges.
func TestTokenizerLongText(t *testing.T) {
	tok := openEmbedded(t, models.Default, llama.Options{}).Tokenizer()
	encode := func(text string) time.Duration {
		best := time.Hour
		for range 3 {
			start := time.Now()
			tok.Encode(text)
			best = min(best, time.Since(start))
		}
		return best
	}
	for _, unit := range []string{"the king and all the lords ", "a", " ", "é", "\n"} {
		const small = 1 << 14
		short, long := encode(strings.Repeat(unit, small/len(unit))), encode(strings.Repeat(unit, 16*small/len(unit)))
		if limit := 16*8*short + 100*time.Millisecond; long > limit { // 8 for log n, caches and a busy machine; quadratic is 256
			t.Errorf("%q: %v for %d bytes, %v for 16 times that, want at most %v", unit, short, small, long, limit)
		}
	}
}

// The file's flags are respected, and absent ones mean true, as for llama.cpp.
func TestTokenizerFlags(t *testing.T) {
	for _, c := range []struct {
		name        string
		change      func(f *llamatest.File)
		first       int32
		firstIsText string
	}{
		{"neither", func(*llamatest.File) {}, -1, "the"},
		{"bos", func(f *llamatest.File) { f.Set("tokenizer.ggml.add_bos_token", true) }, 1, "the"},
		{"space", func(f *llamatest.File) { f.Set("tokenizer.ggml.add_space_prefix", true) }, -1, " the"},
		{"absent", func(f *llamatest.File) {
			f.Unset("tokenizer.ggml.add_bos_token")
			f.Unset("tokenizer.ggml.add_space_prefix")
		}, 1, " the"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := llamatest.Random(llamatest.Config{})
			c.change(f)
			m, err := openBytes(f.Bytes(), llama.Options{})
			if err != nil {
				t.Fatal(err)
			}
			tokens := m.Tokenizer().Encode("the")
			if c.first >= 0 {
				if tokens[0] != c.first {
					t.Fatalf("tokens are %v, want %d first", tokens, c.first)
				}
				if got := m.Tokenizer().Decode(tokens); got != "the" {
					t.Errorf("decoded to %q, want %q", got, "the")
				}
				tokens = tokens[1:]
			}
			if len(tokens) != 1 || m.Tokenizer().Decode(tokens) != c.firstIsText {
				t.Errorf("tokens of text are %v, %q, want one, %q", tokens, m.Tokenizer().Decode(tokens), c.firstIsText)
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	tok := openEmbedded(b, models.Default, llama.Options{}).Tokenizer()
	text := strings.Repeat("But soft, what light through yonder window breaks?\n", 100)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Encode(text)
	}
}

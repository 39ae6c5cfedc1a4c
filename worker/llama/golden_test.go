package llama_test

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

type golden struct {
	Models map[string][]struct {
		Name   string
		Text   string
		Tokens []int32
		Logits []float32
		Greedy []int32
	}
}

func openEmbedded(tb testing.TB, name string, opts llama.Options) *llama.Model {
	tb.Helper()
	f, err := models.FS.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	m, err := llama.OpenReader(f.(interface {
		ReadAt([]byte, int64) (int, error)
	}), st.Size(), name, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

// Tokens are llama.cpp's, logits PyTorch's, and both agree on the greedy continuation: neither shares code with this engine.
func TestGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	const tolerance = 0.02
	for model, cases := range g.Models {
		m := openEmbedded(t, model, llama.Options{})
		for _, c := range cases {
			t.Run(model+"/"+c.Name, func(t *testing.T) {
				if got := m.Tokenizer().Encode(c.Text); !slices.Equal(got, c.Tokens) {
					t.Fatalf("tokens of %q:\n got %v\nwant %v", c.Text, got, c.Tokens)
				}
				if got := m.Tokenizer().Decode(c.Tokens); got != c.Text {
					t.Errorf("tokens decode to %q, want %q", got, c.Text)
				}
				if testing.Short() && len(c.Tokens) > 500 {
					t.Skip("long prompt in short mode")
				}
				seq, err := m.NewSequence()
				if err != nil {
					t.Fatal(err)
				}
				defer seq.Close()
				logits, err := seq.Prefill(t.Context(), c.Tokens)
				if err != nil {
					t.Fatal(err)
				}
				worst := 0.0
				for i, want := range c.Logits {
					worst = max(worst, math.Abs(float64(logits[i]-want)))
				}
				if !(worst <= tolerance) {
					t.Fatalf("logits differ by up to %v, want at most %v", worst, tolerance)
				}
				t.Logf("logits differ by at most %.5f", worst)
				sampler := engine.NewSampler(engine.SampleOptions{})
				var got []int32
				for len(got) < len(c.Greedy) {
					got = append(got, sampler.Sample(logits))
					if logits, err = seq.Prefill(t.Context(), got[len(got)-1:]); err != nil {
						t.Fatal(err)
					}
				}
				if !slices.Equal(got, c.Greedy) {
					t.Errorf("greedy tokens:\n got %v\nwant %v", got, c.Greedy)
				}
			})
		}
	}
}

package llama_test

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func trainee(t testing.TB, untied bool) *llama.Model {
	t.Helper()
	b := llamatest.Random(llamatest.Config{Seed: 11, Untied: untied}).Bytes()
	m, err := llama.OpenReader(bytes.NewReader(b), int64(len(b)), "trainee", llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func logitsOf(t testing.TB, m engine.Engine, tokens []int32) []float32 {
	t.Helper()
	s, err := m.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := s.Prefill(t.Context(), tokens)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(l)
}

func kvOf(t testing.TB, m engine.Engine, tokens []int32) []byte {
	t.Helper()
	s, err := m.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Prefill(t.Context(), tokens); err != nil {
		t.Fatal(err)
	}
	l := m.Layout()
	kv := make([]byte, l.PartBytes(l.Part(0)))
	if err := s.Export(0, l.Part(0), kv); err != nil {
		t.Fatal(err)
	}
	return kv
}

// Real numbers: the loss falls. What comes out is another variant, the model it began with stays what it was.
func TestTrainingMakesANewVariant(t *testing.T) {
	for name, untied := range map[string]bool{"tied": false, "untied": true} {
		t.Run(name, func(t *testing.T) {
			m := trainee(t, untied)
			defer m.Close()
			tokens := m.Tokenizer().Encode("the king and the thing in the inn and a hen in the air there")
			before, kvBefore, id := logitsOf(t, m, tokens), kvOf(t, m, tokens), m.Identity()
			tr, err := llama.NewTrainer(m, 0.1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tr.Model(); err == nil {
				t.Error("a new variant without a step")
			}
			var losses []float64
			for range 30 {
				loss, err := tr.Step(t.Context(), tokens)
				if err != nil {
					t.Fatal(err)
				}
				losses = append(losses, loss)
			}
			first, last := losses[0], losses[len(losses)-1]
			t.Logf("loss %.3f, %.3f after 30 steps", first, last)
			if !(last < first/2) {
				t.Errorf("the loss went from %v to %v", first, last)
			}
			trained, err := tr.Model()
			if err != nil {
				t.Fatal(err)
			}
			defer trained.Close()
			if trained.Identity().Variant() == id.Variant() || m.Identity() != id {
				t.Error("the trained weights have the identity of those before, or those have another")
			}
			if !slices.Equal(logitsOf(t, m, tokens), before) {
				t.Error("the model that training began with computes something else now")
			}
			if slices.Equal(logitsOf(t, trained, tokens), before) {
				t.Error("the trained model computes what the one before does")
			}
			if same := bytes.Equal(kvOf(t, trained, tokens), kvBefore); same != untied {
				t.Errorf("K/V is the same: %v; it depends on the embedding, which is tied: %v", same, !untied)
			}
			again := logitsOf(t, trained, tokens)
			if _, err := tr.Step(t.Context(), tokens); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(logitsOf(t, trained, tokens), again) {
				t.Error("a model changed while its trainer went on")
			}
			next, err := tr.Model()
			if err != nil || next.Identity() == trained.Identity() {
				t.Errorf("one step later the digest is the same (%v)", err)
			}
		})
	}
}

// A step goes down the gradient, as far as the rate says.
func TestAStepLowersTheLossInProportion(t *testing.T) {
	m := trainee(t, true)
	defer m.Close()
	tokens := m.Tokenizer().Encode("the king and the thing")
	lossAt := func(steps int, rate float32) float64 {
		tr, err := llama.NewTrainer(m, rate)
		if err != nil {
			t.Fatal(err)
		}
		var loss float64
		for range steps + 1 {
			if loss, err = tr.Step(t.Context(), tokens); err != nil {
				t.Fatal(err)
			}
		}
		return loss
	}
	// To first order a step of rate r lowers the loss by r·|g|²: twice the rate, twice the fall.
	base := lossAt(0, 1e-5)
	one, two := base-lossAt(1, 1e-5), base-lossAt(1, 2e-5)
	if ratio := two / one; one <= 0 || math.Abs(ratio-2) > 0.1 {
		t.Errorf("falls of %v and %v: ratio %v, want 2", one, two, ratio)
	}
}

func TestTrainerRefuses(t *testing.T) {
	m := trainee(t, false)
	tr, err := llama.NewTrainer(m, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, tokens := range [][]int32{nil, {1}, {1, -1}, {1, 1 << 20}, make([]int32, 200)} {
		if _, err := tr.Step(t.Context(), tokens); err == nil {
			t.Errorf("a step on %d tokens", len(tokens))
		}
	}
	if _, err := llama.NewTrainer(m, -1); err == nil {
		t.Error("a negative rate")
	}
	m.Close()
	if _, err := llama.NewTrainer(m, 0); err == nil {
		t.Error("training a closed model")
	}
}

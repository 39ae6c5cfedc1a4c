package loss_test

import (
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/bench/loss"
)

// Figures are those of the codec and the model, not of the machine: they may be asserted.
func TestInt8LosesLittle(t *testing.T) {
	steps := 0
	l, err := loss.Measure(t.Context(), block.QuantInt8, 2, func() { steps++ })
	if err != nil {
		t.Fatal(err)
	}
	if steps != 2 || l.Scored == 0 {
		t.Errorf("%d steps of 2, %d tokens scored", steps, l.Scored)
	}
	if l.LogitRMS <= 0 || l.LogitRMS > l.LogitSpread/100 || l.SameTop < 0.98 || l.Perplexity > 1.01*l.PerplexityExact {
		t.Errorf("eight bits lose too much, or nothing at all: %+v", *l)
	}
}

func TestNoneLosesNothing(t *testing.T) {
	l, err := loss.Measure(t.Context(), block.QuantNone, 1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if l.LogitMax != 0 || l.SameTop != 1 || l.Perplexity != l.PerplexityExact {
		t.Errorf("exact blocks change logits: %+v", *l)
	}
}

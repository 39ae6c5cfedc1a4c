package worker

import (
	"math"
	"testing"

	"github.com/kvtier/kvtier/worker/engine"
)

func TestLogprobs(t *testing.T) {
	log := func(p float64) float32 { return float32(math.Log(p)) }
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	logits := []float32{log(1), nan, log(5), log(2), inf, log(2)}
	got, top := logprobs(logits, 3, 3)
	near := func(a, b float32) bool { return math.Abs(float64(a-b)) < 1e-5 }
	if !near(got, log(0.2)) {
		t.Errorf("%v, want %v", got, log(0.2))
	}
	for i, want := range []engine.TokenLogprob{{Token: 2, Logprob: log(0.5)}, {Token: 3, Logprob: log(0.2)}, {Token: 5, Logprob: log(0.2)}} {
		if top[i].Token != want.Token || !near(top[i].Logprob, want.Logprob) {
			t.Errorf("%d: %+v, want %+v", i, top[i], want)
		}
	}
	for _, token := range []int32{1, 4} {
		if p, top := logprobs(logits, token, 0); p != inf || len(top) != 0 {
			t.Errorf("impossible token %d: %v, %v", token, p, top)
		}
	}
	if _, top := logprobs(logits, 0, 20); len(top) != len(logits) {
		t.Errorf("%d of %d tokens", len(top), len(logits))
	}
}

package worker

import (
	"cmp"
	"math"
	"slices"

	"github.com/kvtier/kvtier/worker/engine"
)

// logprobs returns the log-probability of token under logits, and of the n likeliest tokens, likeliest first; of equal ones the lower comes
// first. NaN counts as impossible. Impossible tokens have minus infinity.
func logprobs(logits []float32, token int32, n int) (float32, []engine.TokenLogprob) {
	most := math.Inf(-1)
	for _, v := range logits {
		if v == v {
			most = max(most, float64(v))
		}
	}
	sum := 0.0
	for _, v := range logits {
		if v == v {
			sum += math.Exp(float64(v) - most)
		}
	}
	norm := most + math.Log(sum)
	of := func(v float32) float32 {
		if p := float32(float64(v) - norm); p == p {
			return p
		}
		return float32(math.Inf(-1))
	}
	var top []engine.TokenLogprob
	for i, v := range logits {
		p := engine.TokenLogprob{Token: int32(i), Logprob: of(v)}
		if len(top) == n && (n == 0 || p.Logprob <= top[n-1].Logprob) {
			continue
		}
		at, _ := slices.BinarySearchFunc(top, p, func(a, b engine.TokenLogprob) int {
			return cmp.Or(cmp.Compare(b.Logprob, a.Logprob), cmp.Compare(a.Token, b.Token))
		})
		top = slices.Insert(top, at, p)
		if len(top) > n {
			top = top[:n]
		}
	}
	return of(logits[token]), top
}

package engine

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// SampleOptions choose how the next token is drawn. The zero value is greedy.
type SampleOptions struct {
	// Temperature divides the logits before they become probabilities. 0 (also anything below, and NaN) takes the likeliest token.
	Temperature float64
	// TopP keeps the fewest likeliest tokens whose probabilities add up to at least TopP. 0 and 1 mean all tokens.
	TopP float64
	// Seed starts the generator: equal options and equal logits give equal tokens, on every machine of one architecture.
	Seed uint64
}

// Sampler draws tokens from logits. It is not safe for concurrent use; make one per sequence.
type Sampler struct {
	opts  SampleOptions
	rng   *rand.Rand
	order []int32   // scratch: tokens, likeliest first
	prob  []float64 // scratch: probability of each token, unnormalised
}

// NewSampler returns a sampler in the state that opts.Seed gives.
func NewSampler(opts SampleOptions) *Sampler {
	return &Sampler{opts: opts, rng: rand.New(rand.NewPCG(opts.Seed, 0x6b767469657231))}
}

// Sample returns a token, -1 for no logits. Logits that are NaN are never drawn, nor is minus infinity as long as there is
// anything else; of equal logits the lower token comes first. logits are not changed and not kept.
func (s *Sampler) Sample(logits []float32) int32 {
	best := argmax(logits)
	if !(s.opts.Temperature > 0) || best < 0 {
		return max(best, min(0, int32(len(logits)-1))) // nothing but NaN: token 0
	}
	top := float64(logits[best])
	if math.IsInf(top, 0) { // probabilities would be NaN; only the best has any
		return best
	}
	s.prob = s.prob[:0]
	total := 0.0
	for _, v := range logits {
		p := 0.0
		if v == v {
			p = math.Exp((float64(v) - top) / s.opts.Temperature)
		}
		s.prob = append(s.prob, p)
		total += p
	}
	if s.opts.TopP > 0 && s.opts.TopP < 1 {
		return s.nucleus(total)
	}
	u := s.rng.Float64() * total
	for i, p := range s.prob {
		if u -= p; u < 0 && p > 0 {
			return int32(i)
		}
	}
	return best // rounding left a rest
}

// nucleus draws from the likeliest tokens that reach TopP of total.
func (s *Sampler) nucleus(total float64) int32 {
	s.order = s.order[:0]
	for i, p := range s.prob {
		if p > 0 {
			s.order = append(s.order, int32(i))
		}
	}
	slices.SortFunc(s.order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(s.prob[b], s.prob[a]), cmp.Compare(a, b))
	})
	kept, n := 0.0, 0
	for n < len(s.order) && (n == 0 || kept < s.opts.TopP*total) {
		kept += s.prob[s.order[n]]
		n++
	}
	u := s.rng.Float64() * kept
	for _, token := range s.order[:n] {
		if u -= s.prob[token]; u < 0 {
			return token
		}
	}
	return s.order[0]
}

// argmax is the first of the largest logits, -1 if there is none but NaN.
func argmax(logits []float32) int32 {
	best := int32(-1)
	for i, v := range logits {
		if v == v && (best < 0 || v > logits[best]) {
			best = int32(i)
		}
	}
	return best
}

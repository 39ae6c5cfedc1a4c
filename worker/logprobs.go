package worker

import (
	"cmp"
	"math"
	"slices"
	"strings"

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

// score notes what the model thought of the prompt's token at pos, by the logits behind the one before it.
func (a *answer) score(pos int, logits []float32) {
	if pos == 1 {
		a.scores = append(a.scores, a.scored(0))
	}
	if pos == len(a.prompt) {
		return // the first token of the answer is there
	}
	p := a.scored(pos)
	p.Logprob, p.Top = logprobs(logits, p.Token, a.req.TopLogprobs)
	a.scores = append(a.scores, p)
}

// scored is the prompt's token at pos. The texts of all tokens make up the text of the prompt.
func (a *answer) scored(pos int) TokenLogprobs {
	t, token := a.engine.Tokenizer(), a.prompt[pos]
	p := TokenLogprobs{Token: token, Text: t.Decode(a.prompt[pos : pos+1])}
	if pos == 1 { // behind a token that begins a text a space may be the tokenizer's own
		p.Text = strings.TrimPrefix(t.Decode(a.prompt[:2]), t.Decode(a.prompt[:1]))
	}
	return p
}

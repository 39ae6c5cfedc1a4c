package llama

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvtier/kvtier/internal/half"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

// reference computes logits of the last token straight from the definition, in float64, sharing nothing with the engine
// but the rounding of K and V to binary16.
func reference(f *llamatest.File, c llamatest.Config, tokens []int32) []float64 {
	dim, group := c.Dim, c.Heads/c.KVHeads
	if dim == 0 {
		dim = c.Heads * c.HeadDim
	}
	values := func(name string) []float32 { return f.Tensor(name).Values }
	mul := func(name string, x []float64) []float64 {
		w := values(name)
		out := make([]float64, len(w)/len(x))
		for i := range out {
			for j, v := range x {
				out[i] += float64(w[i*len(x)+j]) * v
			}
		}
		return out
	}
	norm := func(name string, x []float64) []float64 {
		sum := 0.0
		for _, v := range x {
			sum += v * v
		}
		out := make([]float64, len(x))
		for i, w := range values(name) {
			out[i] = x[i] / math.Sqrt(sum/float64(len(x))+float64(float32(1e-5))) * float64(w)
		}
		return out
	}
	rope := func(x []float64, pos int) {
		for h := 0; h < len(x); h += c.HeadDim {
			for i := 0; i < c.HeadDim; i += 2 {
				angle := float64(pos) * math.Pow(10000, -float64(i)/float64(c.HeadDim))
				a, b := x[h+i], x[h+i+1]
				x[h+i], x[h+i+1] = a*math.Cos(angle)-b*math.Sin(angle), a*math.Sin(angle)+b*math.Cos(angle)
			}
		}
	}
	round := func(x []float64) {
		for i := range x {
			x[i] = float64(half.Round(float32(x[i])))
		}
	}
	stream := make([][]float64, len(tokens))
	for t, token := range tokens {
		for _, v := range values("token_embd.weight")[int(token)*dim:][:dim] {
			stream[t] = append(stream[t], float64(v))
		}
	}
	for l := range c.Layers {
		name := func(s string) string { return fmt.Sprintf("blk.%d.%s.weight", l, s) }
		var keys, vals [][]float64
		for t := range tokens {
			x := norm(name("attn_norm"), stream[t])
			q, k, v := mul(name("attn_q"), x), mul(name("attn_k"), x), mul(name("attn_v"), x)
			rope(q, t)
			rope(k, t)
			round(k)
			round(v)
			keys, vals = append(keys, k), append(vals, v)
			out := make([]float64, c.Heads*c.HeadDim)
			for h := range c.Heads {
				at := h / group * c.HeadDim
				weights, total := make([]float64, t+1), 0.0
				for p := range weights {
					dot := 0.0
					for d := range c.HeadDim {
						dot += q[h*c.HeadDim+d] * keys[p][at+d]
					}
					weights[p] = math.Exp(dot / math.Sqrt(float64(c.HeadDim)))
					total += weights[p]
				}
				for p, w := range weights {
					for d := range c.HeadDim {
						out[h*c.HeadDim+d] += w / total * vals[p][at+d]
					}
				}
			}
			for i, v := range mul(name("attn_output"), out) {
				stream[t][i] += v
			}
			x = norm(name("ffn_norm"), stream[t])
			gate, up := mul(name("ffn_gate"), x), mul(name("ffn_up"), x)
			for i := range gate {
				gate[i] *= up[i] / (1 + math.Exp(-gate[i]))
			}
			for i, v := range mul(name("ffn_down"), gate) {
				stream[t][i] += v
			}
		}
	}
	output := "token_embd.weight"
	if c.Untied {
		output = "output.weight"
	}
	return mul(output, norm("output_norm.weight", stream[len(tokens)-1]))
}

func TestReference(t *testing.T) {
	for name, c := range map[string]llamatest.Config{
		"mha":         {Layers: 2, Heads: 3, KVHeads: 3, HeadDim: 16, FFN: 50},
		"gqa":         {Layers: 3, Heads: 6, KVHeads: 2, HeadDim: 10, FFN: 64},
		"mqa":         {Layers: 1, Heads: 4, KVHeads: 1, HeadDim: 32, FFN: 96},
		"untied":      {Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 64, FFN: 33, Untied: true},
		"f16":         {Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 32, FFN: 64, Type: 1},
		"bf16":        {Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 32, FFN: 64, Type: 30},
		"q8_0":        {Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 32, FFN: 64, Type: 8},
		"wide head":   {Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 256, FFN: 32},
		"own width":   {Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 16, Dim: 24, FFN: 32},
		"narrow head": {Layers: 1, Heads: 4, KVHeads: 2, HeadDim: 2, FFN: 8},
	} {
		t.Run(name, func(t *testing.T) {
			c.Seed, c.Context = 7, 512
			f := llamatest.Random(c)
			m := openRandom(t, c, Options{})
			rng := rand.New(rand.NewPCG(1, 1))
			for _, n := range []int{1, 2, 17, 270} { // beyond one span of positions
				if n > 100 && testing.Short() {
					continue
				}
				tokens := make([]int32, n)
				for i := range tokens {
					tokens[i] = rng.Int32N(int32(m.hparams.vocab))
				}
				s, err := m.NewSequence()
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.Prefill(t.Context(), tokens)
				if err != nil {
					t.Fatal(err)
				}
				want, worst, size := reference(f, c, tokens), 0.0, 0.0
				for i := range want {
					worst = max(worst, math.Abs(float64(got[i])-want[i]))
					size = max(size, math.Abs(want[i]))
				}
				// A value on the edge between two binary16 numbers may round to the other one: that is most of it.
				if !(worst <= 2e-3*size) {
					t.Errorf("%d tokens: logits of up to %.3g differ by up to %.3g", n, size, worst)
				}
			}
		})
	}
}

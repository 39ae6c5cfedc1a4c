package bench

import (
	"fmt"
	"strings"

	"github.com/kvtier/kvtier/block"
)

// Model is what decides how large a model's K/V is and what a token costs to compute.
type Model struct {
	Name string
	// Layers, KVHeads and HeadDim are num_hidden_layers, num_key_value_heads and head_dim (or hidden_size ÷
	// num_attention_heads) of the config.json that the model is published with; Heads is num_attention_heads.
	Layers, Heads, KVHeads, HeadDim int
	// Params is the number of parameters that a token passes through, in units, from the model card. 0: unknown.
	Params float64
	DType  block.DType
	Source string // where the numbers are from
}

// Models are the models that advise knows, besides the shipped one.
func Models() []Model {
	return []Model{
		{"Llama-3.2-1B", 16, 32, 8, 64, 1.24e9, block.BF16, "meta-llama/Llama-3.2-1B config.json"},
		{"Llama-3.2-3B", 28, 24, 8, 128, 3.21e9, block.BF16, "meta-llama/Llama-3.2-3B config.json"},
		{"Llama-3-8B", 32, 32, 8, 128, 8.03e9, block.BF16, "meta-llama/Meta-Llama-3-8B config.json"},
		{"Llama-3-70B", 80, 64, 8, 128, 70.6e9, block.BF16, "meta-llama/Meta-Llama-3-70B config.json"},
		{"Llama-3.1-8B", 32, 32, 8, 128, 8.03e9, block.BF16, "meta-llama/Llama-3.1-8B config.json"},
		{"Llama-3.1-70B", 80, 64, 8, 128, 70.6e9, block.BF16, "meta-llama/Llama-3.1-70B config.json"},
		{"Mistral-7B", 32, 32, 8, 128, 7.25e9, block.BF16, "mistralai/Mistral-7B-v0.3 config.json"},
		{"Qwen2.5-7B", 28, 28, 4, 128, 7.61e9, block.BF16, "Qwen/Qwen2.5-7B config.json"},
		{"Qwen3-8B", 36, 32, 8, 128, 8.19e9, block.BF16, "Qwen/Qwen3-8B config.json"},
		{"Qwen2.5-32B", 64, 40, 8, 128, 32.5e9, block.BF16, "Qwen/Qwen2.5-32B config.json"},
		{"Qwen2.5-72B", 80, 64, 8, 128, 72.7e9, block.BF16, "Qwen/Qwen2.5-72B config.json"},
	}
}

// FindModel looks a name up in models: letter case does not matter, and a path such as meta-llama/Meta-Llama-3-8B-Instruct is found by
// the name it contains.
func FindModel(models []Model, name string) (Model, error) {
	want := strings.ToLower(name[strings.LastIndexByte(name, '/')+1:])
	var names []string
	var found Model
	for _, m := range models {
		names = append(names, m.Name)
		have := strings.ToLower(m.Name)
		if have == want {
			return m, nil
		}
		if strings.Contains(want, have) && len(have) > len(found.Name) {
			found = m
		}
	}
	if found.Name == "" {
		return Model{}, fmt.Errorf("unknown model %q; known are %s; for another one give --layout", name, strings.Join(names, ", "))
	}
	return found, nil
}

// TokenBytes is the K and V of one token.
func (m Model) TokenBytes() int { return m.Layers * 2 * m.KVHeads * m.HeadDim * m.DType.Size() }

// FLOPs is what prefill computes per token, averaged over a prompt of contextTokens: two per parameter, and causal attention over half
// the context: 2 multiplications and additions for each of Q·K and weights·V, per head dimension and layer.
func (m Model) FLOPs(contextTokens int) float64 {
	return 2*m.Params + 2*float64(m.Layers*m.Heads*m.HeadDim)*float64(contextTokens)
}

// ParseLayout reads a model such as layers=32,kv_heads=8,head_dim=128,dtype=bf16. heads and params (such as 8e9), both optional, allow
// comparing with GPUs.
func ParseLayout(s string) (Model, error) {
	m := Model{Name: "layout", DType: block.BF16, Source: "--layout"}
	for field := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		var err error
		switch key {
		case "layers":
			_, err = fmt.Sscanf(value, "%d", &m.Layers)
		case "kv_heads":
			_, err = fmt.Sscanf(value, "%d", &m.KVHeads)
		case "heads":
			_, err = fmt.Sscanf(value, "%d", &m.Heads)
		case "head_dim":
			_, err = fmt.Sscanf(value, "%d", &m.HeadDim)
		case "params":
			_, err = fmt.Sscanf(value, "%g", &m.Params)
		case "dtype":
			m.DType, err = parseDType(value)
		default:
			err = fmt.Errorf("unknown field %q", key)
		}
		if err != nil {
			return Model{}, fmt.Errorf("layout %q: %s: %w; want layers=32,kv_heads=8,head_dim=128,dtype=bf16[,heads=32,params=8e9]", s, key, err)
		}
	}
	if m.Layers < 1 || m.KVHeads < 1 || m.HeadDim < 1 || m.Layers > block.MaxLayers || m.KVHeads > block.MaxKVHeads ||
		m.HeadDim > block.MaxHeadDim || m.Heads < 0 || m.Params < 0 {
		return Model{}, fmt.Errorf("layout %q: layers, kv_heads and head_dim must be given and in range: want layers=32,kv_heads=8,head_dim=128,dtype=bf16", s)
	}
	return m, nil
}

func parseDType(s string) (block.DType, error) {
	for _, d := range []block.DType{block.F16, block.BF16, block.F32} {
		if s == d.String() {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%q is not f16, bf16 or f32", s)
}

package llamatest

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/kvtier/kvtier/internal/half"
)

// Config is the shape of a random model. Zero fields take the value in brackets.
type Config struct {
	Seed    uint64
	Layers  int    // [2]
	Heads   int    // [4]
	KVHeads int    // [2]
	HeadDim int    // [16]
	Dim     int    // width of the residual stream [Heads × HeadDim]
	FFN     int    // [96]
	Context int    // [512] tokens
	Type    uint32 // of matrices, as in GGUF [0, F32]; norms are always F32
	Vocab   int    // so many tokens, none of them a byte [256 bytes and 42 others]
	Untied  bool   // with an output matrix of its own
}

func (c Config) withDefaults() Config {
	for field, value := range map[*int]int{&c.Layers: 2, &c.Heads: 4, &c.KVHeads: 2, &c.HeadDim: 16, &c.FFN: 96, &c.Context: 512} {
		if *field == 0 {
			*field = value
		}
	}
	if c.Dim == 0 {
		c.Dim = c.Heads * c.HeadDim
	}
	return c
}

// Random is a file with a complete model of random weights and a vocabulary of some 300 tokens: bytes, ASCII, and a few
// pieces that merge. Equal configurations give equal files.
func Random(c Config) *File {
	c = c.withDefaults()
	rng := rand.New(rand.NewPCG(c.Seed, 1))
	dim, attn := c.Dim, c.Heads*c.HeadDim
	f := &File{}
	f.Set("general.architecture", "llama")
	f.Set("general.name", fmt.Sprintf("random %d", c.Seed))
	f.Set("llama.context_length", uint32(c.Context))
	f.Set("llama.embedding_length", uint32(dim))
	f.Set("llama.block_count", uint32(c.Layers))
	f.Set("llama.feed_forward_length", uint32(c.FFN))
	f.Set("llama.attention.head_count", uint32(c.Heads))
	f.Set("llama.attention.head_count_kv", uint32(c.KVHeads))
	f.Set("llama.attention.layer_norm_rms_epsilon", float32(1e-5))
	f.Set("llama.rope.freq_base", float32(10000))
	if dim != attn {
		f.Set("llama.attention.key_length", uint32(c.HeadDim))
		f.Set("llama.attention.value_length", uint32(c.HeadDim))
	}
	vocab := setVocabulary(f, c.Vocab)

	matrix := func(name string, in, out int) {
		f.Tensors = append(f.Tensors, randomTensor(rng, name, c.Type, 1.5/math.Sqrt(float64(in)), 0, in, out))
	}
	norm := func(name string) {
		f.Tensors = append(f.Tensors, randomTensor(rng, name, 0, 0.1, 1, dim))
	}
	matrix("token_embd.weight", dim, vocab)
	for i := range c.Layers {
		name := func(s string) string { return fmt.Sprintf("blk.%d.%s.weight", i, s) }
		norm(name("attn_norm"))
		matrix(name("attn_q"), dim, attn)
		matrix(name("attn_k"), dim, c.KVHeads*c.HeadDim)
		matrix(name("attn_v"), dim, c.KVHeads*c.HeadDim)
		matrix(name("attn_output"), attn, dim)
		norm(name("ffn_norm"))
		matrix(name("ffn_gate"), dim, c.FFN)
		matrix(name("ffn_up"), dim, c.FFN)
		matrix(name("ffn_down"), c.FFN, dim)
	}
	norm("output_norm.weight")
	if c.Untied {
		matrix("output.weight", dim, vocab)
	}
	return f
}

// setVocabulary adds the tokenizer's metadata and returns the number of tokens, which is limit unless that is 0.
func setVocabulary(f *File, limit int) int {
	pieces, types, scores := []string{"<unk>", "<s>", "</s>"}, []int32{2, 3, 3}, []float32{0, 0, 0}
	add := func(piece string, typ int32, score float32) {
		pieces, types, scores = append(pieces, piece), append(types, typ), append(scores, score)
	}
	if limit == 0 {
		for b := range 256 {
			add(fmt.Sprintf("<0x%02X>", b), 6, 0)
		}
	}
	for i, p := range []string{"th", "he", "in", "er", "an", "▁t", "▁a", "the", "▁the", "ing", "and", "▁and"} {
		add(p, 1, -float32(i+1))
	}
	for c := byte('a'); c <= 'z'; c++ {
		add(string(c), 1, -100)
	}
	add("▁", 1, -100)
	if limit > 0 {
		pieces, types, scores = pieces[:limit], types[:limit], scores[:limit]
	}
	f.Set("tokenizer.ggml.model", "llama")
	f.Set("tokenizer.ggml.tokens", pieces)
	f.Set("tokenizer.ggml.scores", scores)
	f.Set("tokenizer.ggml.token_type", types)
	f.Set("tokenizer.ggml.bos_token_id", uint32(1))
	f.Set("tokenizer.ggml.eos_token_id", uint32(2))
	f.Set("tokenizer.ggml.add_bos_token", false)
	f.Set("tokenizer.ggml.add_space_prefix", false)
	return len(pieces)
}

func randomTensor(rng *rand.Rand, name string, typ uint32, deviation, mean float64, shape ...int) Tensor {
	n := 1
	for _, d := range shape {
		n *= d
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = float32(mean + deviation*rng.NormFloat64())
	}
	t := Tensor{Name: name, Type: typ, Shape: shape}
	t.Data, t.Values = Encode(typ, values)
	return t
}

// Encode stores values as a type and returns the bytes, and the values that they stand for. It panics on a type that the
// engine does not read.
func Encode(typ uint32, values []float32) (data []byte, stored []float32) {
	le := binary.LittleEndian
	stored = make([]float32, len(values))
	switch typ {
	case 0:
		for i, v := range values {
			data, stored[i] = le.AppendUint32(data, math.Float32bits(v)), v
		}
	case 1:
		for i, v := range values {
			data, stored[i] = le.AppendUint16(data, half.FromFloat32(v)), half.Round(v)
		}
	case 30:
		for i, v := range values {
			bits := math.Float32bits(v) >> 16
			data, stored[i] = le.AppendUint16(data, uint16(bits)), math.Float32frombits(bits<<16)
		}
	case 8:
		for i := 0; i < len(values); i += 32 {
			largest := 0.0
			for _, v := range values[i : i+32] {
				largest = max(largest, math.Abs(float64(v)))
			}
			scale := half.Round(float32(largest / 127))
			data = le.AppendUint16(data, half.FromFloat32(scale))
			for j, v := range values[i : i+32] {
				q := int8(0)
				if scale != 0 {
					q = int8(max(-127, min(127, math.RoundToEven(float64(v/scale)))))
				}
				data, stored[i+j] = append(data, byte(q)), scale*float32(q)
			}
		}
	case 2, 3, 6, 7:
		width := 4 + int(typ)/6
		for i := 0; i < len(values); i += 32 {
			data = append(data, halves(values[i:i+32], stored[i:i+32], width, typ%2 == 1)...)
		}
	case 12, 13:
		for i := 0; i < len(values); i += 256 {
			data = append(data, superBlock(values[i:i+256], stored[i:i+256], int(typ)-8)...)
		}
	case 14:
		for i := 0; i < len(values); i += 256 {
			data = append(data, q6K(values[i:i+256], stored[i:i+256])...)
		}
	default:
		panic(fmt.Sprintf("llamatest: encode type %d", typ))
	}
	return data, stored
}

package llamatest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// Checkpoint is a Hugging Face checkpoint in memory. Tests change it before they write it.
type Checkpoint struct {
	Config    map[string]any
	Tokenizer map[string]any
	Tensors   []HFTensor // in the order of their bytes
}

// HFTensor is a tensor as safetensors has it, its shape outermost dimension first.
type HFTensor struct {
	Name, DType string
	Shape       []int
	Data        []byte
}

// Convert makes a checkpoint of the model in a GGUF file, the way back from what converters do: names, the order of rows
// in query and key matrices, merges from scores. Only F32, F16 and BF16 tensors have a counterpart. It panics on anything else.
func Convert(file []byte) *Checkpoint {
	f, err := gguf.Parse(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		panic(err)
	}
	number := func(key string) int {
		n, err := f.Metadata.Uint("llama."+key, 1<<30)
		if err != nil {
			panic(err)
		}
		return n
	}
	real := func(key string) float64 { return must(gguf.Get[float64](f.Metadata, "llama."+key)) }
	heads, kvHeads := number("attention.head_count"), number("attention.head_count_kv")
	pieces := must(gguf.Get[[]string](f.Metadata, "tokenizer.ggml.tokens"))
	headDim := number("embedding_length") / heads
	if _, ok := f.Metadata["llama.attention.key_length"]; ok {
		headDim = number("attention.key_length")
	}
	c := &Checkpoint{Config: map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_act": "silu",
		"max_position_embeddings": number("context_length"), "num_hidden_layers": number("block_count"),
		"hidden_size": number("embedding_length"), "intermediate_size": number("feed_forward_length"),
		"num_attention_heads": heads, "num_key_value_heads": kvHeads, "head_dim": headDim, "vocab_size": len(pieces),
		"rms_norm_eps": real("attention.layer_norm_rms_epsilon"), "rope_theta": real("rope.freq_base"),
		"tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "rope_scaling": nil,
		"eos_token_id": must(f.Metadata.Uint("tokenizer.ggml.eos_token_id", len(pieces))),
	}}
	for _, t := range f.Tensors {
		data := slices.Clone(file[t.Offset : t.Offset+t.Bytes])
		name := hfName(t.Name)
		switch {
		case strings.HasSuffix(t.Name, "attn_q.weight"), strings.HasSuffix(t.Name, "attn_k.weight"):
			data = separate(data, headDim, int(t.Bytes)/t.Shape[1])
		case name == "lm_head.weight":
			c.Config["tie_word_embeddings"] = false
		}
		shape := slices.Clone(t.Shape)
		slices.Reverse(shape)
		c.Tensors = append(c.Tensors, HFTensor{Name: name, DType: t.DType.String(), Shape: shape, Data: data})
	}
	c.Tokenizer = tokenizerJSON(pieces, must(gguf.Get[[]float64](f.Metadata, "tokenizer.ggml.scores")), must(gguf.Get[[]int64](f.Metadata, "tokenizer.ggml.token_type")))
	return c
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func hfName(name string) string {
	switch name {
	case "token_embd.weight":
		return "model.embed_tokens.weight"
	case "output_norm.weight":
		return "model.norm.weight"
	case "output.weight":
		return "lm_head.weight"
	}
	name = strings.Replace(name, "blk.", "model.layers.", 1)
	return strings.NewReplacer("attn_norm", "input_layernorm", "attn_q", "self_attn.q_proj", "attn_k", "self_attn.k_proj",
		"attn_v", "self_attn.v_proj", "attn_output", "self_attn.o_proj", "ffn_norm", "post_attention_layernorm",
		"ffn_gate", "mlp.gate_proj", "ffn_up", "mlp.up_proj", "ffn_down", "mlp.down_proj").Replace(name)
}

// separate reorders the rows of each head: the even ones first, then the odd ones.
func separate(data []byte, headDim, rowBytes int) []byte {
	out := make([]byte, 0, len(data))
	for head := 0; head < len(data); head += headDim * rowBytes {
		for _, odd := range []int{0, 1} {
			for r := odd; r < headDim; r += 2 {
				out = append(out, data[head+r*rowBytes:][:rowBytes]...)
			}
		}
	}
	return out
}

// tokenizerJSON makes merges of a SentencePiece vocabulary: every pair of pieces that makes a piece, by falling score.
func tokenizerJSON(pieces []string, scores []float64, types []int64) map[string]any {
	vocab, unknown := make(map[string]int, len(pieces)), ""
	type pair struct{ left, right string }
	type candidate struct {
		pair
		score float64
	}
	var added []map[string]any
	normal := make(map[string]bool)
	for id, p := range pieces {
		vocab[p] = id
		switch types[id] {
		case 1:
			normal[p] = true
		case 2:
			unknown = p
		case 3:
			added = append(added, map[string]any{"id": id, "content": p, "special": true})
		}
	}
	var all []candidate
	for id, p := range pieces {
		for i := range p {
			if l, r := p[:i], p[i:]; normal[p] && normal[l] && normal[r] && utf8.ValidString(l) {
				all = append(all, candidate{pair{l, r}, scores[id]})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(b.score, a.score) })
	merges := make([][]string, len(all))
	for i, m := range all {
		merges[i] = []string{m.left, m.right}
	}
	return map[string]any{
		"version": "1.0", "added_tokens": added,
		"normalizer":    map[string]any{"type": "Replace", "pattern": map[string]any{"String": " "}, "content": "▁"},
		"pre_tokenizer": nil, "post_processor": nil,
		"model": map[string]any{"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unknown, "byte_fallback": true, "fuse_unk": true},
	}
}

// Write writes the checkpoint to a directory, its tensors spread over shards files: one is model.safetensors, more have an index.
func (c *Checkpoint) Write(dir string, shards int) error {
	files := map[string][]byte{"config.json": must(json.Marshal(c.Config)), "tokenizer.json": must(json.Marshal(c.Tokenizer))}
	index := map[string]string{}
	for i := range shards {
		name := "model.safetensors"
		if shards > 1 {
			name = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)
		}
		part := c.Tensors[i*len(c.Tensors)/shards : (i+1)*len(c.Tensors)/shards]
		files[name] = Safetensors(part)
		for _, t := range part {
			index[t.Name] = name
		}
	}
	if shards > 1 {
		files["model.safetensors.index.json"] = must(json.Marshal(map[string]any{"weight_map": index}))
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Safetensors is a file with the given tensors.
func Safetensors(tensors []HFTensor) []byte {
	header, at := map[string]any{"__metadata__": map[string]string{"format": "pt"}}, 0
	var data []byte
	for _, t := range tensors {
		header[t.Name] = map[string]any{"dtype": t.DType, "shape": t.Shape, "data_offsets": []int{at, at + len(t.Data)}}
		at += len(t.Data)
		data = append(data, t.Data...)
	}
	h := must(json.Marshal(header))
	for len(h)%8 != 0 {
		h = append(h, ' ')
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), h...), data...)
}

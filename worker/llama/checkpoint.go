package llama

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
	"github.com/kvtier/kvtier/worker/llama/internal/safetensors"
)

// Files of a Hugging Face checkpoint.
const (
	safetensorsSuffix = ".safetensors"
	weightsFile       = "model" + safetensorsSuffix
	indexFile         = weightsFile + ".index.json" // which of several files has which tensor
	configFile        = "config.json"
	tokenizerFile     = "tokenizer.json"
	settingsFile      = "tokenizer_config.json" // optional: only its chat template is used
	templateFile      = "chat_template.jinja"   // optional: where newer checkpoints have it

	maxConfigBytes = 1 << 20
	maxJSONBytes   = 256 << 20
	maxShards      = 4096
)

var checkpointNames = naming{
	embed: "model.embed_tokens.weight", norm: "model.norm.weight", output: "lm_head.weight",
	layer: func(i int, short string) string {
		return fmt.Sprintf("model.layers.%d.%s.weight", i, map[string]string{
			"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
			"attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
			"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
		}[short])
	},
}

// checkpointSource opens the checkpoint in dir. only is the name of the one file with weights, "" to find them.
func checkpointSource(dir, only string) (*source, error) {
	data, err := readFile(dir, configFile, maxConfigBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: give a .gguf file, or a directory with %s, %s and %s", err, configFile, tokenizerFile, weightsFile)
	}
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	h, err := c.hparams()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	h.name = nameOf(dir)
	src := &source{hparams: h, names: checkpointNames, halfTurned: true, tokenizer: func() (*tokenizer, error) {
		data, err := readFile(dir, tokenizerFile, maxJSONBytes)
		if err != nil {
			return nil, err
		}
		template, err := readTemplate(dir)
		if err != nil {
			return nil, err
		}
		t, err := parseTokenizer(data, c, template)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tokenizerFile, err)
		}
		return t, nil
	}}
	if err := src.openShards(dir, only); err != nil {
		src.close()
		return nil, err
	}
	if _, ok := src.tensor(src.names.output); ok == c.Tie {
		src.close()
		if ok {
			return nil, fmt.Errorf("%s says tie_word_embeddings, but there is a tensor %q", configFile, src.names.output)
		}
		return nil, fmt.Errorf("tensor %q is missing, and %s does not say tie_word_embeddings", src.names.output, configFile)
	}
	return src, nil
}

// readTemplate returns the source of the checkpoint's chat template, empty if it has none. Of several templates by name it is the default one.
func readTemplate(dir string) (string, error) {
	data, err := readFile(dir, templateFile, maxTemplateBytes)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return string(data), err
	}
	data, err = readFile(dir, settingsFile, maxJSONBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var settings struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if err := json.Unmarshal(data, &settings); err != nil {
		return "", fmt.Errorf("%s: %w", settingsFile, err)
	}
	if len(settings.Template) == 0 {
		return "", nil
	}
	var one *string
	if json.Unmarshal(settings.Template, &one) == nil {
		if one == nil {
			return "", nil
		}
		return *one, nil
	}
	var named []struct{ Name, Template string }
	if err := json.Unmarshal(settings.Template, &named); err != nil {
		return "", fmt.Errorf("%s: chat_template is neither a string nor a list of named ones", settingsFile)
	}
	for _, t := range named {
		if t.Name == "default" {
			return t.Template, nil
		}
	}
	return "", nil
}

func nameOf(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return filepath.Base(dir)
}

func readFile(dir, name string, limit int64) ([]byte, error) {
	path := filepath.Join(dir, name)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, want a file of at most %d", name, st.Size(), limit)
	}
	return os.ReadFile(path)
}

func (src *source) tensor(name string) (stored, bool) {
	for _, t := range src.tensors {
		if t.Name == name {
			return t, true
		}
	}
	return stored{}, false
}

// openShards opens the files with weights and collects their tensors, which the index, if there is one, must agree with.
func (src *source) openShards(dir, only string) error {
	files, index := []string{only}, map[string]string(nil)
	if only == "" {
		var err error
		if files, index, err = shards(dir); err != nil {
			return err
		}
	}
	seen := make(map[string]string)
	for _, name := range files {
		f, st, err := openRegular(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		src.files = append(src.files, f)
		tensors, err := safetensors.Parse(f, st.Size())
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, t := range tensors {
			if other, ok := seen[t.Name]; ok {
				return fmt.Errorf("tensor %q is in %s and in %s", t.Name, other, name)
			}
			seen[t.Name] = name
			if index != nil && index[t.Name] != name {
				return fmt.Errorf("%s: tensor %q is in %s, but the index says %q", indexFile, t.Name, name, index[t.Name])
			}
			if strings.HasSuffix(t.Name, ".rotary_emb.inv_freq") { // what rope_theta says, written out by old versions
				continue
			}
			x, err := widened(t)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			src.tensors = append(src.tensors, stored{x, f})
		}
	}
	for name, file := range index {
		if seen[name] == "" {
			return fmt.Errorf("%s: tensor %q is not in %s", indexFile, name, file)
		}
	}
	return nil
}

// shards lists the files with weights.
func shards(dir string) (files []string, index map[string]string, err error) {
	data, err := readFile(dir, indexFile, maxJSONBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{weightsFile}, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var list struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	for tensor, name := range list.Map {
		// The name comes from a file that somebody else may have made: it must not lead out of the directory.
		if !filepath.IsLocal(name) || filepath.Base(name) != name || !strings.HasSuffix(name, safetensorsSuffix) {
			return nil, nil, fmt.Errorf("%s: tensor %.100q is in %.100q, want the name of a %s file beside it", indexFile, tensor, name, safetensorsSuffix)
		}
		files = append(files, name)
	}
	slices.Sort(files)
	files = slices.Compact(files)
	if len(files) == 0 || len(files) > maxShards {
		return nil, nil, fmt.Errorf("%s names %d files, want 1 to %d", indexFile, len(files), maxShards)
	}
	return files, list.Map, nil
}

// widened describes a tensor as the loader takes it.
func widened(t safetensors.Tensor) (gguf.Tensor, error) {
	types := map[string]gguf.DType{"F32": gguf.F32, "F16": gguf.F16, "BF16": gguf.BF16}
	d, ok := types[t.DType]
	if !ok {
		return gguf.Tensor{}, fmt.Errorf("tensor %q has element type %s, want F32, F16 or BF16: convert the model to one of them", t.Name, t.DType)
	}
	shape := slices.Clone(t.Shape)
	slices.Reverse(shape)
	if len(shape) == 0 || slices.Contains(shape, 0) {
		return gguf.Tensor{}, fmt.Errorf("tensor %q has shape %v", t.Name, t.Shape)
	}
	return gguf.Tensor{Name: t.Name, DType: d, Shape: shape, Offset: t.Offset, Bytes: t.Bytes}, nil
}

package llama_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func writeCheckpoint(t testing.TB, c *llamatest.Checkpoint, shards int) string {
	t.Helper()
	dir := t.TempDir()
	if err := c.Write(dir, shards); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openPath(t testing.TB, path string, opts llama.Options) *llama.Model {
	t.Helper()
	m, err := llama.Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// A model has the same tokens, logits and K/V, to the bit, whether it comes from GGUF or from a Hugging Face checkpoint.
func TestCheckpointIsTheSameModel(t *testing.T) {
	shipped, err := models.FS.ReadFile(models.Default)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{"", "a", " ", "the king and the thing", "  two  spaces ", "naïve 你好 🙂\n\x00", strings.Repeat("of the lords ", 30)}
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	for _, c := range g.Models[models.Default] {
		texts = append(texts, c.Text)
	}
	for name, file := range map[string][]byte{
		"shipped": shipped,
		"gqa":     llamatest.Random(llamatest.Config{Heads: 6, KVHeads: 2, HeadDim: 10}).Bytes(),
		"untied":  llamatest.Random(llamatest.Config{Type: 30, Untied: true}).Bytes(),
		"narrow":  llamatest.Random(llamatest.Config{Heads: 4, KVHeads: 1, HeadDim: 16, Dim: 24, Type: 1}).Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			want, err := openBytes(file, llama.Options{})
			if err != nil {
				t.Fatal(err)
			}
			c := llamatest.Convert(file)
			one, three := writeCheckpoint(t, c, 1), writeCheckpoint(t, c, 3)
			for _, path := range []string{one, three, filepath.Join(one, "model.safetensors")} {
				got := openPath(t, path, llama.Options{})
				for _, text := range texts {
					if a, b := got.Tokenizer().Encode(text), want.Tokenizer().Encode(text); !slices.Equal(a, b) {
						t.Fatalf("%.40q is %v, from GGUF %v", text, a, b)
					}
				}
				tokens := someTokens(40, want.Tokenizer().Vocab())
				if !slices.Equal(logitsOf(t, got, tokens), logitsOf(t, want, tokens)) {
					t.Error("other logits")
				}
				if string(kvOf(t, got, tokens)) != string(kvOf(t, want, tokens)) {
					t.Error("other K/V")
				}
				if got.Layout() != want.Layout() || got.ContextTokens() != want.ContextTokens() || got.Tokenizer().EOS() != want.Tokenizer().EOS() {
					t.Error("another layout, context or end of text")
				}
				// The digest is of names and bytes as stored: the formats do not share entries, files of one format do, however they are cut.
				if got.Identity().Weights == want.Identity().Weights {
					t.Error("both formats have the same digest, although they store other bytes")
				}
				for _, other := range []string{one, three} {
					id, noted, err := llama.IdentifyNoted(other, llama.Options{})
					if err != nil || noted || id != got.Identity() {
						t.Errorf("identified %v (noted %v, %v), loaded %v", id, noted, err, got.Identity())
					}
				}
			}
		})
	}
}

// Golden tokens, which are PyTorch's and llama.cpp's, come out of the exported checkpoint too.
func TestCheckpointGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	file, err := models.FS.ReadFile(models.Default)
	if err != nil {
		t.Fatal(err)
	}
	m := openPath(t, writeCheckpoint(t, llamatest.Convert(file), 2), llama.Options{})
	for _, c := range g.Models[models.Default] {
		if len(c.Tokens) > 500 {
			continue
		}
		s, err := m.NewSequence()
		if err != nil {
			t.Fatal(err)
		}
		logits, err := s.Prefill(t.Context(), m.Tokenizer().Encode(c.Text))
		sampler := engine.NewSampler(engine.SampleOptions{})
		var got []int32
		for err == nil && len(got) < len(c.Greedy) {
			got = append(got, sampler.Sample(logits))
			logits, err = s.Prefill(t.Context(), got[len(got)-1:])
		}
		if err != nil || !slices.Equal(got, c.Greedy) {
			t.Errorf("%s: greedy tokens are %v, want %v (%v)", c.Name, got, c.Greedy, err)
		}
		s.Close()
	}
}

func TestCheckpointConformance(t *testing.T) {
	dir := writeCheckpoint(t, llamatest.Convert(llamatest.Random(llamatest.Config{Type: 30}).Bytes()), 1)
	enginetest.Run(t, func(t *testing.T) engine.Engine { return openPath(t, dir, llama.Options{}) })
}

// What a trainer has learnt of a checkpoint is another variant, as with GGUF files.
func TestCheckpointCanBeTrained(t *testing.T) {
	for _, untied := range []bool{false, true} {
		m := openPath(t, writeCheckpoint(t, llamatest.Convert(llamatest.Random(llamatest.Config{Untied: untied}).Bytes()), 1), llama.Options{})
		tr, err := llama.NewTrainer(m, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Step(t.Context(), someTokens(20, m.Tokenizer().Vocab())); err != nil {
			t.Fatal(err)
		}
		next, err := tr.Model()
		if err != nil || next.Identity() == m.Identity() {
			t.Errorf("untied %v: the trained weights have the digest of those before (%v)", untied, err)
		}
	}
}

// Both shapes of special cases of tokenizer.json that other exporters write.
func TestCheckpointTokenizerVariants(t *testing.T) {
	file := llamatest.Random(llamatest.Config{}).Bytes()
	plain := openPath(t, writeCheckpoint(t, llamatest.Convert(file), 1), llama.Options{}).Tokenizer()
	with := func(change func(c *llamatest.Checkpoint)) engine.Tokenizer {
		c := llamatest.Convert(file)
		change(c)
		return openPath(t, writeCheckpoint(t, c, 1), llama.Options{}).Tokenizer()
	}
	const text = "the king and then"
	replace := map[string]any{"type": "Replace", "pattern": map[string]any{"String": " "}, "content": "▁"}
	merges := with(func(c *llamatest.Checkpoint) { // older files: one string a merge
		m := c.Tokenizer["model"].(map[string]any)
		var joined []string
		for _, p := range m["merges"].([][]string) {
			joined = append(joined, p[0]+" "+p[1])
		}
		m["merges"] = joined
	})
	if got, want := merges.Encode(text), plain.Encode(text); !slices.Equal(got, want) {
		t.Errorf("merges as strings: %v, want %v", got, want)
	}
	meta := with(func(c *llamatest.Checkpoint) {
		c.Tokenizer["normalizer"] = nil
		c.Tokenizer["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false}
	})
	if got, want := meta.Encode(text), plain.Encode(text); !slices.Equal(got, want) {
		t.Errorf("Metaspace: %v, want %v", got, want)
	}
	llama2 := with(func(c *llamatest.Checkpoint) {
		c.Tokenizer["normalizer"] = map[string]any{"type": "Sequence", "normalizers": []any{map[string]any{"type": "Prepend", "prepend": "▁"}, replace}}
		c.Tokenizer["post_processor"] = map[string]any{
			"type":           "TemplateProcessing",
			"single":         []any{map[string]any{"SpecialToken": map[string]any{"id": "<s>", "type_id": 0}}, map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}}},
			"special_tokens": map[string]any{"<s>": map[string]any{"id": "<s>", "ids": []int{1}, "tokens": []string{"<s>"}}},
		}
	})
	if got, want := llama2.Encode(text), append([]int32{1}, plain.Encode(" "+text)...); !slices.Equal(got, want) {
		t.Errorf("as Llama 2: %v, want %v", got, want)
	}
	if got := llama2.Decode(llama2.Encode(text)); got != text {
		t.Errorf("as Llama 2: came back as %q", got)
	}
	padded := with(func(c *llamatest.Checkpoint) { // the embedding has more rows than there are tokens
		c.Config["vocab_size"] = 300
		x := &c.Tensors[0]
		rowBytes := len(x.Data) / x.Shape[0]
		x.Data = append(x.Data, make([]byte, (300-x.Shape[0])*rowBytes)...)
		x.Shape = []int{300, x.Shape[1]}
	})
	if got, want := padded.Encode(text), plain.Encode(text); !slices.Equal(got, want) || padded.Vocab() != 300 || padded.Decode([]int32{299}) != "" {
		t.Errorf("with rows of no token: %v, want %v; vocabulary %d", got, want, padded.Vocab())
	}
	if got := plain.Encode("<s>"); slices.Contains(got, 1) {
		t.Errorf("text names a control token: %v", got)
	}
}

// The chat template is found in both places, the file of its own first.
func TestCheckpointTemplate(t *testing.T) {
	c := llamatest.Convert(llamatest.Random(llamatest.Config{}).Bytes())
	c.Config["bos_token_id"] = 1
	dir := writeCheckpoint(t, c, 1)
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(source string) {
		t.Helper()
		if got := openPath(t, dir, llama.Options{}).ChatTemplate(); got.Source != source || got.BOS != "<s>" || got.EOS != "</s>" {
			t.Errorf("template is %+v, want %q between <s> and </s>", got, source)
		}
	}
	want("")
	put("tokenizer_config.json", `{"chat_template": null}`)
	want("")
	put("tokenizer_config.json", `{"chat_template": "{{ a }}"}`)
	want("{{ a }}")
	put("tokenizer_config.json", `{"chat_template": [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "c"}]}`)
	want("c")
	put("chat_template.jinja", "d")
	want("d")
	if err := os.Remove(filepath.Join(dir, "chat_template.jinja")); err != nil {
		t.Fatal(err)
	}
	put("tokenizer_config.json", `{"chat_template": 5}`)
	if _, err := llama.Open(dir, llama.Options{}); err == nil || !strings.Contains(err.Error(), "tokenizer_config.json") {
		t.Errorf("a template that is a number: %v", err)
	}
}

// Every crooked checkpoint is refused with an error that names the file and what is wrong with it.
func TestCrookedCheckpoints(t *testing.T) {
	set := func(key string, value any) func(c *llamatest.Checkpoint) {
		return func(c *llamatest.Checkpoint) { c.Config[key] = value }
	}
	tok := func(key string, value any) func(c *llamatest.Checkpoint) {
		return func(c *llamatest.Checkpoint) { c.Tokenizer[key] = value }
	}
	model := func(key string, value any) func(c *llamatest.Checkpoint) {
		return func(c *llamatest.Checkpoint) { c.Tokenizer["model"].(map[string]any)[key] = value }
	}
	swap := func(c *llamatest.Checkpoint) { // two merges change places, so that one piece's are apart
		m := c.Tokenizer["model"].(map[string]any)
		m["merges"] = append(m["merges"].([][]string), m["merges"].([][]string)[0])
	}
	for name, c := range map[string]struct {
		change func(c *llamatest.Checkpoint)
		want   string
	}{
		"architecture":    {set("model_type", "gpt2"), `model_type "gpt2" is not supported`},
		"activation":      {set("hidden_act", "gelu"), `hidden_act "gelu"`},
		"bias":            {set("attention_bias", true), "attention_bias"},
		"quantised":       {set("quantization_config", map[string]any{"bits": 4}), "quantization_config"},
		"rope":            {set("rope_scaling", map[string]any{"rope_type": "llama3", "factor": 8}), `rope scaling "llama3" is not supported`},
		"yarn, older key": {set("rope_scaling", map[string]any{"type": "yarn", "factor": 8}), `"yarn"`},
		"rope factor":     {set("rope_scaling", map[string]any{"type": "linear"}), "factor"},
		"rope twice":      {set("rope_parameters", map[string]any{"rope_type": "default", "rope_theta": 5}), "do not agree"},
		"rope theta":      {set("rope_theta", -1), "rope_theta"},
		"partial rotary":  {set("partial_rotary_factor", 0.5), "partial_rotary_factor"},
		"layers":          {set("num_hidden_layers", 1<<40), "num_hidden_layers"},
		"heads":           {set("num_attention_heads", 0), "num_attention_heads is 0"},
		"uneven heads":    {set("num_key_value_heads", 3), "cannot share"},
		"odd head":        {set("head_dim", 15), "even number"},
		"huge head":       {set("head_dim", 1<<20), "head_dim"},
		"epsilon":         {set("rms_norm_eps", 0), "rms_norm_eps"},
		"text for number": {set("hidden_size", "64"), "hidden_size"},
		"several ends":    {set("eos_token_id", []int{1, 2}), "eos_token_id names 2"},
		"end outside":     {set("eos_token_id", 1<<20), "outside the vocabulary"},
		"vocabulary":      {set("vocab_size", 100), "vocab_size 100"},
		"vast vocabulary": {set("vocab_size", 1<<23), "vocab_size"},
		"more rows":       {set("vocab_size", 400), `"model.embed_tokens.weight" has shape`},
		"not tied":        {set("tie_word_embeddings", false), `"lm_head.weight" is missing`},
		"byte level": {func(c *llamatest.Checkpoint) {
			c.Tokenizer["normalizer"], c.Tokenizer["pre_tokenizer"] = nil, map[string]any{"type": "ByteLevel"}
		}, "byte-level BPE"},
		"normalizer":       {tok("normalizer", map[string]any{"type": "NFKC"}), `normalizer "NFKC"`},
		"pre-tokenizer":    {tok("pre_tokenizer", map[string]any{"type": "Whitespace"}), `pre_tokenizer "Whitespace"`},
		"metaspace":        {tok("pre_tokenizer", map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}), "Metaspace"},
		"post-processor":   {tok("post_processor", map[string]any{"type": "ByteLevel"}), `post_processor "ByteLevel"`},
		"template":         {tok("post_processor", map[string]any{"type": "TemplateProcessing", "single": []any{}}), "template"},
		"added token":      {tok("added_tokens", []any{map[string]any{"id": 3, "content": "x y"}}), "added token"},
		"added token far":  {tok("added_tokens", []any{map[string]any{"id": -1, "content": "x", "special": true}}), "outside vocab_size"},
		"same token":       {tok("added_tokens", []any{map[string]any{"id": 270, "content": "x", "special": true}}), "same token"},
		"unigram":          {model("type", "Unigram"), `model "Unigram"`},
		"no bytes":         {model("byte_fallback", false), "byte_fallback"},
		"ignores merges":   {model("ignore_merges", true), "ignore_merges"},
		"unknown unknown":  {model("unk_token", "<what>"), "unk_token"},
		"no merges":        {model("merges", []any{}), "no merge makes it"},
		"foreign merge":    {model("merges", []any{"q q"}), "not one of ordinary pieces"},
		"broken merge":     {model("merges", []any{7}), "merge"},
		"merges apart":     {swap, "ranks apart"},
		"element type":     {func(c *llamatest.Checkpoint) { c.Tensors[0].DType = "I32" }, "element type I32"},
		"unknown type":     {func(c *llamatest.Checkpoint) { c.Tensors[0].DType = "Q9" }, `element type "Q9" is unknown`},
		"shape":            {func(c *llamatest.Checkpoint) { c.Tensors[2].Shape = []int{1, 2} }, "data_offsets say"},
		"transposed":       {func(c *llamatest.Checkpoint) { x := &c.Tensors[7]; x.Shape = []int{x.Shape[1], x.Shape[0]} }, "has shape"},
		"missing tensor":   {func(c *llamatest.Checkpoint) { c.Tensors = c.Tensors[1:] }, `"model.embed_tokens.weight" is missing`},
		"foreign tensor":   {func(c *llamatest.Checkpoint) { c.Tensors[3].Name = "model.layers.0.self_attn.q_proj.bias" }, "q_proj.bias"},
		"tied with output": {func(c *llamatest.Checkpoint) { c.Tensors[0].Name = "lm_head.weight" }, "says tie_word_embeddings"},
		"empty tensor":     {func(c *llamatest.Checkpoint) { c.Tensors[1].Shape, c.Tensors[1].Data = []int{0}, nil }, "has shape [0]"},
	} {
		t.Run(name, func(t *testing.T) {
			x := llamatest.Convert(llamatest.Random(llamatest.Config{}).Bytes())
			c.change(x)
			dir := writeCheckpoint(t, x, 1)
			_, err := llama.Open(dir, llama.Options{})
			if err == nil {
				t.Fatal("the checkpoint was accepted")
			}
			if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %q, want the path and %q", err, c.want)
			}
		})
	}
}

// Files that are missing, cut off, or point elsewhere.
func TestCrookedCheckpointFiles(t *testing.T) {
	x := llamatest.Convert(llamatest.Random(llamatest.Config{}).Bytes())
	for name, c := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"no config":    {func(dir string) error { return os.Remove(filepath.Join(dir, "config.json")) }, "give a .gguf file, or a directory with config.json"},
		"no tokenizer": {func(dir string) error { return os.Remove(filepath.Join(dir, "tokenizer.json")) }, "tokenizer.json"},
		"no weights":   {func(dir string) error { return os.Remove(filepath.Join(dir, "model-00002-of-00002.safetensors")) }, "model-00002-of-00002.safetensors"},
		"broken JSON":  {func(dir string) error { return os.WriteFile(filepath.Join(dir, "config.json"), []byte("{"), 0o600) }, "config.json"},
		"truncated": {func(dir string) error {
			return os.Truncate(filepath.Join(dir, "model-00001-of-00002.safetensors"), 5000)
		}, "truncated"},
		"way out": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), []byte(`{"weight_map":{"a":"../a.safetensors"}}`), 0o600)
		}, "want the name of a .safetensors file"},
		"index of nothing": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), []byte(`{}`), 0o600)
		}, "names 0 files"},
		"wrong index": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), []byte(`{"weight_map":{"model.norm.weight":"model-00001-of-00002.safetensors"}}`), 0o600)
		}, "but the index says"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeCheckpoint(t, x, 2)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := llama.Open(dir, llama.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q", err, c.want)
			}
		})
	}
}

// FuzzCheckpoint gives the three files any bytes: no panic, and what opens can compute.
func FuzzCheckpoint(f *testing.F) {
	c := llamatest.Convert(llamatest.Random(smallest).Bytes())
	config, _ := json.Marshal(c.Config)
	tokenizer, _ := json.Marshal(c.Tokenizer)
	f.Add(config, tokenizer, llamatest.Safetensors(c.Tensors))
	f.Add([]byte("{}"), []byte("{}"), []byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, config, tokenizer, weights []byte) {
		for name, data := range map[string][]byte{"config.json": config, "tokenizer.json": tokenizer, "model.safetensors": weights} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := llama.Open(dir, llama.Options{Threads: 1})
		if err != nil {
			return
		}
		defer m.Close()
		s, err := m.NewSequence()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		m.Tokenizer().Decode(m.Tokenizer().Encode("to be, or not to be"))
		if _, err := s.Prefill(t.Context(), []int32{0, 1}); err != nil {
			t.Fatal(err)
		}
	})
}

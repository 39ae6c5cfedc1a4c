package llama_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func openBytes(data []byte, opts llama.Options) (*llama.Model, error) {
	return llama.OpenReader(bytes.NewReader(data), int64(len(data)), "crooked.gguf", opts)
}

// Every crooked file is refused with an error that names the file and what is wrong with it.
func TestCrookedFiles(t *testing.T) {
	array := func(element uint32, n uint64) llamatest.Raw {
		return llamatest.Raw{Type: 9, Data: binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, element), n)}
	}
	for name, c := range map[string]struct {
		change func(f *llamatest.File)
		want   string // part of the error
	}{
		"magic":            {func(f *llamatest.File) { f.Magic = "GGML" }, `starts with "GGML"`},
		"version 1":        {func(f *llamatest.File) { f.Version = 1 }, "version 1 is not supported"},
		"big-endian":       {func(f *llamatest.File) { f.Version = 3 << 24 }, "not supported"},
		"tensor count":     {func(f *llamatest.File) { f.TensorCount = 1 << 60 }, "more than fit"},
		"pair count":       {func(f *llamatest.File) { f.PairCount = 1 << 60 }, "more than fit"},
		"one pair more":    {func(f *llamatest.File) { f.PairCount = uint64(len(f.Metadata) + 1) }, ""},
		"duplicate key":    {func(f *llamatest.File) { f.Metadata = append(f.Metadata, f.Metadata[0]) }, "occurs twice"},
		"long array":       {func(f *llamatest.File) { f.Set("x", array(4, 1<<61)) }, "more than fit"},
		"nested array":     {func(f *llamatest.File) { f.Set("x", array(9, 1)) }, "unsupported value type"},
		"unknown type":     {func(f *llamatest.File) { f.Set("x", llamatest.Raw{Type: 77}) }, "unknown value type 77"},
		"alignment 0":      {func(f *llamatest.File) { f.Set("general.alignment", uint32(0)) }, "power of two"},
		"alignment text":   {func(f *llamatest.File) { f.Set("general.alignment", "32") }, "general.alignment"},
		"no architecture":  {func(f *llamatest.File) { f.Unset("general.architecture") }, "general.architecture"},
		"architecture":     {func(f *llamatest.File) { f.Set("general.architecture", "gpt2") }, `architecture "gpt2" is not supported`},
		"no layers":        {func(f *llamatest.File) { f.Unset("llama.block_count") }, "llama.block_count"},
		"too many layers":  {func(f *llamatest.File) { f.Set("llama.block_count", uint32(1<<31)) }, "llama.block_count"},
		"more layers":      {func(f *llamatest.File) { f.Set("llama.block_count", uint32(3)) }, `"blk.2.attn_norm.weight" is missing`},
		"fewer layers":     {func(f *llamatest.File) { f.Set("llama.block_count", uint32(1)) }, "not supported"},
		"no heads":         {func(f *llamatest.File) { f.Set("llama.attention.head_count", uint32(0)) }, "head_count is 0"},
		"heads of text":    {func(f *llamatest.File) { f.Set("llama.attention.head_count", "four") }, "head_count"},
		"negative width":   {func(f *llamatest.File) { f.Set("llama.embedding_length", int32(-64)) }, "embedding_length is -64"},
		"uneven heads":     {func(f *llamatest.File) { f.Set("llama.attention.head_count_kv", uint32(3)) }, "cannot share"},
		"epsilon":          {func(f *llamatest.File) { f.Set("llama.attention.layer_norm_rms_epsilon", float32(-1)) }, "epsilon"},
		"rope dimensions":  {func(f *llamatest.File) { f.Set("llama.rope.dimension_count", uint32(15)) }, "even number"},
		"rope scaling":     {func(f *llamatest.File) { f.Set("llama.rope.scaling.type", "yarn") }, "yarn"},
		"tokenizer":        {func(f *llamatest.File) { f.Set("tokenizer.ggml.model", "gpt2") }, `tokenizer "gpt2" is not supported`},
		"no vocabulary":    {func(f *llamatest.File) { f.Unset("tokenizer.ggml.tokens") }, "tokenizer.ggml.tokens"},
		"short vocabulary": {func(f *llamatest.File) { f.Set("tokenizer.ggml.scores", []float32{1}) }, "1 scores"},
		"no unknown token": {func(f *llamatest.File) { setType(f, 0, 3) }, "unknown tokens"},
		"byte piece":       {func(f *llamatest.File) { setType(f, 1, 6) }, "byte"},
		"token type":       {func(f *llamatest.File) { setType(f, 5, 9) }, "unknown type 9"},
		"eos":              {func(f *llamatest.File) { f.Set("tokenizer.ggml.eos_token_id", uint32(1<<20)) }, "eos_token_id"},
		"missing tensor":   {func(f *llamatest.File) { f.Tensors = f.Tensors[1:] }, `"token_embd.weight" is missing`},
		"unknown tensor": {func(f *llamatest.File) {
			x := f.Tensors[1]
			x.Name = "blk.0.attn_q.bias"
			f.Tensors = append(f.Tensors, x)
		}, "attn_q.bias"},
		"duplicate tensor": {func(f *llamatest.File) { f.Tensors = append(f.Tensors, f.Tensors[1]) }, "occurs twice"},
		"nameless tensor":  {func(f *llamatest.File) { f.Tensors[3].Name = "" }, "no name"},
		"shape":            {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Shape = []int{96, 64} }, "has shape [96 64], want [64 96]"},
		"huge shape":       {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Shape = []int{1 << 30, 1 << 30} }, "cannot fit"},
		"empty shape":      {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Shape = []int{0} }, "cannot fit"},
		"five dimensions":  {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Shape = []int{1, 1, 1, 1, 1} }, "5 dimensions"},
		"tensor type":      {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Type = 10 }, "Q2_K"},
		"type of no name":  {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Type = 999 }, "type 999"},
		"rows of 64 q4_k":  {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Type = 12 }, "no multiple of the 256 that Q4_K"},
		"rows of 64 q5_k":  {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Type = 13 }, "no multiple of the 256 that Q5_K"},
		"rows of 64 q6_k":  {func(f *llamatest.File) { f.Tensor("blk.0.ffn_up.weight").Type = 14 }, "no multiple of the 256 that Q6_K"},
		"rows of 48 q4_0": {func(f *llamatest.File) {
			x := f.Tensor("blk.0.ffn_up.weight")
			x.Type, x.Shape = 2, []int{48, 128}
		}, "no multiple of the 32 that Q4_0"},
		"overlap": {func(f *llamatest.File) { f.Offset = func(llamatest.Tensor, uint64) uint64 { return 0 } }, "overlap"},
		"offset": {func(f *llamatest.File) {
			f.Offset = func(_ llamatest.Tensor, o uint64) uint64 { return o + 1 }
		}, "alignment"},
		"far offset": {func(f *llamatest.File) {
			f.Offset = func(llamatest.Tensor, uint64) uint64 { return 1 << 63 }
		}, "past the end"},
	} {
		t.Run(name, func(t *testing.T) {
			f := llamatest.Random(llamatest.Config{})
			c.change(f)
			m, err := openBytes(f.Bytes(), llama.Options{})
			if err == nil {
				m.Close()
				t.Fatal("the file was accepted")
			}
			if !strings.Contains(err.Error(), "crooked.gguf") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %q, want the file's name and %q", err, c.want)
			}
		})
	}
}

func setType(f *llamatest.File, token int, typ int32) {
	for _, p := range f.Metadata {
		if p.Key == "tokenizer.ggml.token_type" {
			types := append([]int32(nil), p.Value.([]int32)...)
			types[token] = typ
			f.Set(p.Key, types)
			return
		}
	}
}

func TestTruncated(t *testing.T) {
	for _, typ := range []uint32{0, 2, 12, 14} {
		data := llamatest.Random(llamatest.Config{Type: typ, Heads: 2, HeadDim: 128, FFN: 256, Layers: 1, Untied: true}).Bytes()
		step := len(data)/100 + 1
		for n := 0; n < len(data); n += step {
			if _, err := openBytes(data[:n], llama.Options{}); err == nil {
				t.Fatalf("type %d: the first %d of %d bytes were accepted", typ, n, len(data))
			}
		}
	}
}

func TestOpenPath(t *testing.T) {
	dir := t.TempDir()
	if _, err := llama.Open(filepath.Join(dir, "none.gguf"), llama.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v, want ErrNotExist", err)
	}
	if _, err := llama.Open(dir, llama.Options{}); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("directory: %v", err)
	}
	path := filepath.Join(dir, "ok.gguf")
	if err := os.WriteFile(path, llamatest.Random(llamatest.Config{Seed: 3}).Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := llama.Open(path, llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.Name(), "random 3"; got != want {
		t.Errorf("Name is %q, want %q", got, want)
	}
}

func TestVersion2(t *testing.T) {
	f := llamatest.Random(llamatest.Config{})
	three, err := openBytes(f.Bytes(), llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.Version = 2
	two, err := openBytes(f.Bytes(), llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if two.Identity() != three.Identity() {
		t.Error("the version of the container changes the identity")
	}
}

// What changes the arithmetic changes the identity of the weights; what does not, does not.
func TestIdentity(t *testing.T) {
	open := func(change func(f *llamatest.File), opts llama.Options) *llama.Model {
		t.Helper()
		f := llamatest.Random(llamatest.Config{})
		change(f)
		m, err := openBytes(f.Bytes(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	base := open(func(*llamatest.File) {}, llama.Options{})
	for name, c := range map[string]struct {
		change func(f *llamatest.File)
		same   bool
	}{
		"name":         {func(f *llamatest.File) { f.Set("general.name", "other") }, true},
		"tensor order": {func(f *llamatest.File) { f.Tensors[0], f.Tensors[5] = f.Tensors[5], f.Tensors[0] }, true},
		"one bit":      {func(f *llamatest.File) { f.Tensors[3].Data[17] ^= 1 }, false},
		"rope base":    {func(f *llamatest.File) { f.Set("llama.rope.freq_base", float32(20000)) }, false},
		"epsilon":      {func(f *llamatest.File) { f.Set("llama.attention.layer_norm_rms_epsilon", float32(1e-6)) }, false},
		"rope part":    {func(f *llamatest.File) { f.Set("llama.rope.dimension_count", uint32(8)) }, false},
		"rope scale": {func(f *llamatest.File) {
			f.Set("llama.rope.scaling.type", "linear")
			f.Set("llama.rope.scaling.factor", float32(2))
		}, false},
	} {
		if got := open(c.change, llama.Options{}); (got.Identity().Weights == base.Identity().Weights) != c.same {
			t.Errorf("%s: same weights is %v, want %v", name, !c.same, c.same)
		}
	}
	other := open(func(*llamatest.File) {}, llama.Options{BlockTokens: 8, Threads: 1, ContextTokens: 64})
	if other.Identity().Weights != base.Identity().Weights {
		t.Error("options change the weights")
	}
	if other.Identity().Layout == base.Identity().Layout {
		t.Error("another block size has the same layout")
	}
	if !strings.HasPrefix(base.Layout().Numerics, "llama-go/1 ") {
		t.Errorf("Numerics is %q, want the engine's version and its kernel", base.Layout().Numerics)
	}
}

func TestOptions(t *testing.T) {
	data := llamatest.Random(llamatest.Config{}).Bytes()
	for _, opts := range []llama.Options{{BlockTokens: -1}, {BlockTokens: 1 << 20}, {ContextTokens: -1}, {ContextTokens: 513}, {Threads: -1}} {
		if _, err := openBytes(data, opts); err == nil {
			t.Errorf("%+v was accepted", opts)
		}
	}
}

// failing returns an error in the middle of the file.
type failing struct {
	r  io.ReaderAt
	at int64
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.at {
		return 0, errors.New("the disk is on fire")
	}
	return f.r.ReadAt(p, off)
}

func TestReadError(t *testing.T) {
	data := llamatest.Random(llamatest.Config{}).Bytes()
	_, err := llama.OpenReader(failing{bytes.NewReader(data), int64(len(data)) - 100}, int64(len(data)), "burning", llama.Options{})
	if err == nil || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("got %v", err)
	}
}

// smallest is what fuzzers begin with: mutating and minimising take time that grows with the length of their inputs.
var smallest = llamatest.Config{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 2, FFN: 1, Context: 32, Vocab: 5}

// FuzzOpen holds the reader to its promise: no panic, and memory of a small multiple of the file.
func FuzzOpen(f *testing.F) {
	small := llamatest.Random(smallest)
	f.Add(small.Bytes())
	quantised := smallest
	quantised.HeadDim, quantised.FFN, quantised.Type = 32, 32, 2
	f.Add(llamatest.Random(quantised).Bytes())
	small.Version = 2
	small.Tensors = nil
	f.Add(small.Bytes())
	f.Add([]byte("GGUF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := openBytes(data, llama.Options{Threads: 1})
		runtime.ReadMemStats(&after)
		if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(64*len(data)+8<<20); got > limit {
			t.Errorf("opening %d bytes allocated %d, more than %d (err %v)", len(data), got, limit, err)
		}
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

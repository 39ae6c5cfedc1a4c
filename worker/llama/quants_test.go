package llama

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

var updateQuants = flag.Bool("update-quants", false, "write testdata/quants.json; needs KVTIER_LLAMA_QUANTIZE")

// What a writer that shares nothing with the reader says its bytes stand for is what is loaded, to the bit.
func TestQuantisedWeights(t *testing.T) {
	for typ, name := range map[uint32]string{2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"} {
		t.Run(name, func(t *testing.T) {
			f := llamatest.Random(llamatest.Config{Heads: 2, HeadDim: 128, FFN: 256, Layers: 1, Type: typ, Untied: true})
			file := f.Bytes()
			m, err := OpenReader(bytes.NewReader(file), int64(len(file)), name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			for tensor, got := range map[string][]float32{
				"token_embd.weight": m.weights.embed, "output.weight": m.weights.output, "blk.0.ffn_down.weight": m.weights.layers[0].down,
			} {
				if want := f.Tensor(tensor).Values; !slices.Equal(got, want) {
					t.Errorf("%s was loaded as other numbers", tensor)
				}
			}
			if got := m.weights.tensors[0].dtype; got != name {
				t.Errorf("the manifest calls the type %q, want %q", got, name)
			}
		})
	}
}

// vectors are blocks that llama.cpp wrote and what it reads from them.
type vectors map[string]struct {
	Blocks []byte
	Values []byte // float32, little-endian
}

const vectorsFile = "testdata/quants.json"

// Blocks of real weights, quantised and widened by llama.cpp 0.7.0, are widened here to the same numbers.
func TestQuantsAsLlamaCPP(t *testing.T) {
	data, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var all vectors
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 8 {
		t.Fatalf("%d types, want 8", len(all))
	}
	for name, v := range all {
		want := make([]float32, len(v.Values)/4)
		for i := range want {
			want[i] = math.Float32frombits(binary.LittleEndian.Uint32(v.Values[4*i:]))
		}
		got := make([]float32, len(want))
		dequantize(got, v.Blocks, dtypeOf(t, name))
		if !slices.Equal(got, want) {
			t.Errorf("%s: other numbers than llama.cpp's", name)
		}
	}
}

func dtypeOf(t *testing.T, name string) gguf.DType {
	for d := range gguf.DType(64) {
		if d.String() == name {
			return d
		}
	}
	t.Fatalf("no type is called %s", name)
	return 0
}

// Any bytes are widened without a panic, and elements of one block do not depend on another.
func TestQuantsOfAnyBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for d := range blockFuncs {
		elements, size := d.Block()
		src := make([]byte, 20*size)
		for i := range src {
			src[i] = byte(rng.Uint32())
		}
		whole, alone := make([]float32, 20*elements), make([]float32, elements)
		dequantize(whole, src, d)
		for i := range 20 {
			dequantize(alone, src[i*size:(i+1)*size], d)
			for j, v := range alone {
				if math.Float32bits(v) != math.Float32bits(whole[i*elements+j]) {
					t.Fatalf("%v: element %d of block %d depends on what is around it", d, j, i)
				}
			}
		}
	}
}

// With KVTIER_LLAMA_QUANTIZE, the path of llama.cpp's llama-quantize, whole checkpoints are quantised by it, widened by it, and
// compared number by number. It must see files in the directory for temporary files under the same path.
func TestQuantsAgainstLlamaQuantize(t *testing.T) {
	quantize := os.Getenv("KVTIER_LLAMA_QUANTIZE")
	if quantize == "" {
		t.Skip("KVTIER_LLAMA_QUANTIZE is not set to the path of llama-quantize; testdata/quants.json has samples of what it writes")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "f16.gguf")
	data, err := models.FS.ReadFile(models.Default)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, data, 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), quantize, args...).CombinedOutput(); err != nil {
			t.Fatalf("llama-quantize %v: %v\n%s", args, err, out)
		}
	}
	samples := make(vectors)
	for _, kind := range []string{"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_S", "Q5_K_S", "Q6_K", "Q4_K_M"} {
		packed, wide := filepath.Join(dir, kind+".gguf"), filepath.Join(dir, kind+"-f32.gguf")
		run("--pure", source, packed, kind)
		if kind == "Q4_K_M" { // mixed on purpose
			run(source, packed, kind)
		}
		run("--allow-requantize", packed, wide, "F32")
		a, b := readTensors(t, packed), readTensors(t, wide)
		types := map[string]int{}
		for name, x := range a {
			types[x.dtype.String()]++
			got, want := make([]float32, x.elements), make([]float32, x.elements)
			dequantize(got, x.data, x.dtype)
			dequantize(want, b[name].data, b[name].dtype)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %s (%v) is widened to other numbers", kind, name, x.dtype)
			}
			elements, size := x.dtype.Block()
			if _, ok := samples[x.dtype.String()]; !ok && elements > 1 {
				n := 512 / elements
				samples[x.dtype.String()] = struct{ Blocks, Values []byte }{x.data[:n*size], b[name].data[:4*n*elements]}
			}
		}
		t.Logf("%s: tensors by type %v", kind, types)
	}
	if *updateQuants {
		out, err := json.Marshal(samples)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorsFile, append(out, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type rawTensor struct {
	dtype    gguf.DType
	elements int
	data     []byte
}

func readTensors(t *testing.T, path string) map[string]rawTensor {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Parse(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]rawTensor)
	for _, x := range f.Tensors {
		out[x.Name] = rawTensor{x.DType, x.Elements(), data[x.Offset : x.Offset+x.Bytes]}
	}
	return out
}

// Command testgguf writes a model file with random weights: for measuring, where what a model says does not matter and its size does.
//
//	go run ./internal/testgguf -o /tmp/random-56m.gguf
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func main() {
	var c llamatest.Config
	out := flag.String("o", "random.gguf", "`file` to write")
	flag.Uint64Var(&c.Seed, "seed", 1, "equal seeds give equal files")
	flag.IntVar(&c.Layers, "layers", 9, "layers")
	flag.IntVar(&c.Heads, "heads", 12, "query heads")
	flag.IntVar(&c.KVHeads, "kv-heads", 2, "K/V heads")
	flag.IntVar(&c.HeadDim, "head-dim", 64, "dimensions of a head")
	flag.IntVar(&c.FFN, "ffn", 2048, "inner width of the feed-forward network")
	flag.IntVar(&c.Context, "context", 4096, "tokens of context")
	typ := flag.Uint("type", 1, "type of matrices as in GGUF: 0 F32, 1 F16, 8 Q8_0, 30 BF16")
	flag.Parse()
	c.Type = uint32(*typ)
	f := llamatest.Random(c)
	parameters := 0
	for _, t := range f.Tensors {
		n := 1
		for _, d := range t.Shape {
			n *= d
		}
		parameters += n
	}
	b := f.Bytes()
	if err := os.WriteFile(*out, b, 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "testgguf:", err)
		os.Exit(1)
	}
	fmt.Printf("%s: %.1f million parameters, %d bytes\n", *out, float64(parameters)/1e6, len(b))
}

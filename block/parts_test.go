package block_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
)

// class is the smallest of jemalloc's sizes, 2^k × {1, 1.25, 1.5, 1.75}, of at least n bytes: written down a second time, and differently.
func class(n int) int {
	for size := 16; ; size *= 2 {
		for _, quarters := range []int{4, 5, 6, 7} {
			if c := size / 4 * quarters; c >= n {
				return c
			}
		}
	}
}

// charged is what a server needs for the values of a block whose header and metadata have head bytes.
func charged(l block.Layout, head int) (sum int) {
	for _, p := range l.Parts() {
		sum += class(head + p.Bytes + 10)
	}
	return sum
}

func drawLayout(t *rapid.T) block.Layout {
	l := layout8B()
	l.DType = rapid.SampledFrom([]block.DType{block.F16, block.BF16, block.F32}).Draw(t, "dtype")
	l.Layers = rapid.IntRange(1, 128).Draw(t, "layers")
	l.KVHeads = rapid.IntRange(1, 32).Draw(t, "heads")
	l.HeadDim = rapid.SampledFrom([]int{32, 64, 80, 96, 128, 256}).Draw(t, "dim")
	l.BlockTokens = rapid.SampledFrom([]int{1, 16, 32, 64, 256, 512}).Draw(t, "blockTokens")
	l.Quant = rapid.SampledFrom([]block.Quant{block.QuantNone, block.QuantInt8}).Draw(t, "quant")
	if l.Validate() != nil {
		t.Skip("too large")
	}
	return l
}

// Parts are slices that cover the block, in order, and end where engines have a row.
func TestPartsCoverTheBlock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLayout(t)
		parts := l.Parts()
		if len(parts) != l.PartCount() || l.BlockBytes() < block.MinCutBytes && len(parts) != 1 {
			t.Fatalf("%d parts, PartCount is %d, of %d bytes", len(parts), l.PartCount(), l.BlockBytes())
		}
		end := 0
		for i, p := range parts {
			if p.Index != i || p.Offset != end || p.Bytes < 1 || p.Bytes > block.MaxPartBytes || p != l.Part(i) || p.Bytes != l.PartBytes(p) {
				t.Fatalf("part %d is %+v, want it to start at %d", i, p, end)
			}
			if end = p.End(); l.Quant == block.QuantNone && end%l.RowBytes() != 0 {
				t.Fatalf("part %d ends within a row of %d bytes: %+v", i, l.RowBytes(), p)
			}
		}
		if end != l.BlockBytes() {
			t.Fatalf("parts cover %d bytes of %d", end, l.BlockBytes())
		}
	})
}

// From 256 KiB on a server needs at most 1.06 times the payload for a block, if it has 32 rows or more, whatever the header's length.
// A key costs some 200 bytes besides.
func TestPartsFillSizeClasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLayout(t)
		if l.BlockBytes() < 256<<10 || l.RowBytes()*32 > l.BlockBytes() {
			t.Skip()
		}
		for _, head := range []int{256, 320, 384, 512, 512 + 256} {
			if ratio := float64(charged(l, head)) / float64(l.BlockBytes()); ratio > 1.06 {
				t.Fatalf("%.3f times the payload with headers of %d bytes: %+v in %+v", ratio, head, l, l.Parts())
			}
		}
	})
}

// The parts of real models pin the derivation: another one is another version of the wire format.
func TestGoldenParts(t *testing.T) {
	for name, g := range map[string]struct {
		layers, heads, dim, tokens int
		quant                      block.Quant
		parts, bytes, rest         int
		charged                    string
	}{
		"shakespeare-3m":      {4, 4, 32, 16, 0, 1, 32768, 32768, "1.250"},
		"192 KiB":             {24, 2, 64, 16, 0, 1, 196608, 196608, "1.167"},
		"256 KiB":             {8, 8, 64, 16, 0, 2, 261120, 1024, "1.006"},
		"Llama-3.2-1B":        {16, 8, 64, 16, 0, 2, 523264, 1024, "1.003"},
		"Qwen2.5-7B":          {28, 4, 128, 16, 0, 2, 916480, 1024, "1.002"},
		"Llama-3-8B":          {32, 8, 128, 16, 0, 2, 2095104, 2048, "1.001"},
		"Llama-3-8B int8":     {32, 8, 128, 16, block.QuantInt8, 2, 1047552, 37888, "1.004"},
		"Llama-3-70B":         {80, 8, 128, 16, 0, 3, 2619392, 4096, "1.001"},
		"Llama-3-8B 256":      {32, 8, 128, 256, 0, 13, 2619392, 2121728, "1.016"},
		"Llama-3-70B 256":     {80, 8, 128, 256, 0, 33, 2619392, 65536, "1.001"},
		"one layer of 4 MiB":  {1, 32, 128, 256, 0, 3, 2088960, 16384, "1.005"},
		"one token of 32 KiB": {32, 32, 128, 1, 0, 2, 516096, 8192, "1.020"},
	} {
		l := layout8B()
		l.Layers, l.KVHeads, l.HeadDim, l.BlockTokens, l.Quant = g.layers, g.heads, g.dim, g.tokens, g.quant
		first, last := l.Part(0), l.Part(l.PartCount()-1)
		if l.PartCount() != g.parts || first.Bytes != g.bytes || last.Bytes != g.rest {
			t.Errorf("%s: %d parts of %d and %d bytes, want %d of %d and %d", name, l.PartCount(), first.Bytes, last.Bytes, g.parts, g.bytes, g.rest)
		}
		if got := fmt.Sprintf("%.3f", float64(charged(l, 320))/float64(l.BlockBytes())); got != g.charged || l.Charged() != charged(l, 320) {
			t.Errorf("%s: charged %s times the payload, Charged says %d of %d, want %s", name, got, l.Charged(), l.BlockBytes(), g.charged)
		}
	}
}

// Engines ask for a part at every import.
func BenchmarkPart(b *testing.B) {
	l := layout8B()
	for b.Loop() {
		_ = l.Part(1)
	}
}

// A block of Llama-3-8B has 2 MiB. As one value Redis would need 2.5 MiB for it.
func ExampleLayout_Parts() {
	l := block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 32, KVHeads: 8, HeadDim: 128, BlockTokens: 16, TPSize: 1, Numerics: "example/1"}
	for _, p := range l.Parts() {
		fmt.Printf("part %d: bytes %d to %d\n", p.Index, p.Offset, p.End())
	}
	fmt.Printf("%.3f of the payload\n", float64(l.Charged())/float64(l.BlockBytes()))
	// Output:
	// part 0: bytes 0 to 2095104
	// part 1: bytes 2095104 to 2097152
	// 1.001 of the payload
}

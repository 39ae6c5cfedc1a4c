package bench_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/bench"
)

// Figures depend on the machine and are never asserted; that each part measures what it says is.

const short = 20 * time.Millisecond

func TestHash(t *testing.T) {
	r, err := bench.Hash(t.Context(), short, nil)
	if err != nil || r.TokensPerSecond <= 0 || r.NsPerBlock <= 0 || r.BlockTokens != 16 {
		t.Errorf("Hash = %+v, %v", r, err)
	}
}

func TestHot(t *testing.T) {
	steps := 0
	r, err := bench.Hot(t.Context(), short, func() { steps++ })
	if err != nil || r.NsPerHit <= 0 || !r.ZeroCopy || len(r.Rows) != 8 {
		t.Errorf("Hot = %+v, %v", r, err)
	}
	if steps != bench.HotSlices(short) {
		t.Errorf("%d steps, announced were %d", steps, bench.HotSlices(short))
	}
}

func TestCodec(t *testing.T) {
	steps := 0
	r, err := bench.Codec(t.Context(), short, func() { steps++ })
	if err != nil || len(r) == 0 {
		t.Fatalf("Codec = %+v, %v", r, err)
	}
	if steps != bench.CodecSlices(short) {
		t.Errorf("%d steps, announced were %d", steps, bench.CodecSlices(short))
	}
	if len(r) != 3 {
		t.Fatalf("%d codecs, want raw, planes and int8: %+v", len(r), r)
	}
	if p := r[1]; p.Name != "planes" || !p.Lossless || p.Ratio < 1.4 || p.Loss != nil || p.EncodeGBps <= 0 || p.DecodeGBps <= 0 {
		t.Errorf("planes: %+v", p)
	}
	if q := r[2]; q.Name != "int8" || q.Lossless || q.Ratio < 1.9 || q.EncodeGBps <= 0 || q.DecodeGBps <= 0 {
		t.Errorf("int8: %+v", q)
	}
	if raw := r[0]; raw.Name != "raw" || !raw.Lossless || raw.Ratio > 1 || raw.Ratio < 0.99 || raw.EncodeGBps <= 0 || raw.DecodeGBps <= 0 {
		t.Errorf("raw: %+v", raw)
	}
}

func TestLayoutOf(t *testing.T) {
	for n, parts := range map[int]int{8 << 10: 1, 128 << 10: 1, 256 << 10: 2, 2 << 20: 2, 4 << 20: 3, 5 << 20: 3, 32 << 20: 13} {
		l, err := bench.LayoutOf(n)
		if err != nil || l.BlockBytes() != n || l.PartCount() != parts {
			t.Errorf("%d bytes: %d bytes in %d parts, %v; want %d parts", n, l.BlockBytes(), l.PartCount(), err, parts)
		}
	}
	for _, n := range []int{-1, 0, 1, 8<<10 + 1, 5<<20 + 8<<10, 1 << 40} {
		if _, err := bench.LayoutOf(n); !errors.Is(err, bench.ErrValueBytes) {
			t.Errorf("%d bytes: %v, want ErrValueBytes", n, err)
		}
	}
}

func TestModelsAgreeWithTheirPublishedSizes(t *testing.T) {
	for name, want := range map[string]int{"Llama-3-8B": 131072, "Llama-3-70B": 327680, "Qwen2.5-7B": 57344} {
		m, err := bench.FindModel(bench.Models(), name)
		if err != nil || m.TokenBytes() != want {
			t.Errorf("%s: %d bytes per token, %v; want %d", name, m.TokenBytes(), err, want)
		}
	}
	for _, m := range bench.Models() {
		if m.Layers == 0 || m.Heads%m.KVHeads != 0 || m.Params == 0 || m.DType.Size() == 0 || m.Source == "" {
			t.Errorf("incomplete: %+v", m)
		}
	}
}

func TestFindModel(t *testing.T) {
	for name, want := range map[string]string{
		"llama-3-8b": "Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct": "Llama-3-8B", "Qwen/Qwen2.5-7B-Instruct": "Qwen2.5-7B", "Llama-3.1-8B": "Llama-3.1-8B",
	} {
		if m, err := bench.FindModel(bench.Models(), name); err != nil || m.Name != want {
			t.Errorf("%s: %s, %v; want %s", name, m.Name, err, want)
		}
	}
	if _, err := bench.FindModel(bench.Models(), "GPT-99"); err == nil {
		t.Error("a model that nobody knows was found")
	}
}

func TestParseLayout(t *testing.T) {
	m, err := bench.ParseLayout("layers=32, kv_heads=8,head_dim=128,dtype=f16,heads=32,params=8e9")
	if err != nil || m.TokenBytes() != 131072 || m.DType != block.F16 || m.Params != 8e9 {
		t.Errorf("ParseLayout = %+v, %v", m, err)
	}
	for _, bad := range []string{"", "layers=32", "layers=x,kv_heads=8,head_dim=128", "layers=32,kv_heads=8,head_dim=128,dtype=int4",
		"layers=-1,kv_heads=8,head_dim=128", "layers=32,kv_heads=8,head_dim=128,colour=red", "layers=99999999,kv_heads=8,head_dim=128"} {
		if _, err := bench.ParseLayout(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// What Redis needs for a token, next to what MEMORY USAGE says in docs/decisions/020-size-classes.md.
func TestAdviseSaysWhatRedisNeeds(t *testing.T) {
	for name, want := range map[string]float64{"Llama-3.2-1B": 1.004, "Llama-3-8B": 1.001, "Qwen3-8B": 1.028, "Llama-3-70B": 1.001} {
		m, err := bench.FindModel(bench.Models(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.RedisBytes() / float64(m.TokenBytes()); got < want-0.001 || got > want+0.001 {
			t.Errorf("%s: %.4f times the payload, want %.3f", name, got, want)
		}
	}
	small := bench.Model{Layers: 4, KVHeads: 4, HeadDim: 32, DType: block.F16}
	if got := small.RedisBytes() / float64(small.TokenBytes()); got < 1.25 || got > 1.26 {
		t.Errorf("a block of 32 KiB: %.3f times the payload, want 1.256", got)
	}
}

// The table that the formula is documented with: GB/s needed at 40 to 50 % of the peak, contexts of 1k, 8k and 32k.
func TestAdviseFollowsTheDocumentedFormula(t *testing.T) {
	m, err := bench.FindModel(bench.Models(), "Llama-3-8B")
	if err != nil {
		t.Fatal(err)
	}
	a := bench.Advise(m, 3.5, true)
	if a.BreakEven < 26600 || a.BreakEven > 26800 {
		t.Errorf("break-even at 3.5 GB/s is %.0f tokens/s, want 26.7k", a.BreakEven)
	}
	want := []struct{ low, high float64 }{{.40, .50}, {.36, .45}, {.27, .33}, {1.0, 1.3}, {.90, 1.1}, {.67, .83}, {3.2, 4.0}, {2.9, 3.6}, {2.1, 2.6}}
	pays := []string{"yes", "yes", "yes", "yes", "yes", "yes", "depends", "depends", "yes"}
	if len(a.GPUs) != len(want) {
		t.Fatalf("%d GPU rows, want %d", len(a.GPUs), len(want))
	}
	for i, g := range a.GPUs {
		if near := func(x, y float64) bool { return x > 0.96*y && x < 1.04*y }; !near(g.NeedLow, want[i].low) || !near(g.NeedHigh, want[i].high) {
			t.Errorf("%s at %d: %.2f to %.2f GB/s, want %.2f to %.2f", g.Name, g.ContextTokens, g.NeedLow, g.NeedHigh, want[i].low, want[i].high)
		}
		if g.Pays != pays[i] {
			t.Errorf("%s at %d: pays %s, want %s", g.Name, g.ContextTokens, g.Pays, pays[i])
		}
	}
	if a := bench.Advise(bench.Model{Name: "m", Layers: 1, KVHeads: 1, HeadDim: 8, DType: block.F16}, 1, false); a.GPUs == nil || len(a.GPUs) != 0 {
		t.Errorf("a model without parameters was compared with GPUs: %+v", a.GPUs)
	}
}

package block_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
)

var testID = block.Identity{Weights: block.Digest{1}, Layout: block.Digest{2}}

func layout8B() block.Layout {
	return block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 32, KVHeads: 8, HeadDim: 128, BlockTokens: 16,
		TPSize: 1, RopeBase: 500000, RopeScale: 1, Numerics: "test/1"}
}

// The golden values pin what is hashed. They were computed once with Python's hmac and hashlib from the formulas in the
// documentation; a change to them orphans every stored entry and is a new wire version.
func TestGoldenHashes(t *testing.T) {
	c := block.NewChain([]byte("secret"), testID, "tenant", 4)
	hashes := c.AppendHashes(nil, []int32{1, 2, 3, 4, 5, 6, 7, 8, 9})
	for _, g := range []struct{ name, got, want string }{
		{"variant", testID.Variant().String(), "fyczjh5g7v3hnjpd"},
		{"namespace", c.Namespace().String(), "6064702b48538e478d76d09039e54cc3a7c19a271ec4f0af3ca5964c5f22e369"},
		{"block 0", hex.EncodeToString(hashes[0][:]), "e74c2ddeeef5e4558bb195552c832e1b63b160312a4e12101ae094305a2fa542"},
		{"block 1", hex.EncodeToString(hashes[1][:]), "681997282e957dd9f5d475f6e41f5bce4084c01f7716e6019fbb1d003c576b08"},
		{"layout", layout8B().Digest().String(), "867ef398cb6981b6ffd53ea14124b344f47f7b4b0ebd5f22c270a0f99699671d"},
	} {
		if g.got != g.want {
			t.Errorf("%s: got %s, want %s", g.name, g.got, g.want)
		}
	}
	if len(hashes) != 2 {
		t.Errorf("%d hashes, want 2: the partial third block has none", len(hashes))
	}
}

// Equal prefixes, and only they, have equal hashes.
func TestChainIsPrefixStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const bt = 4
		tokens := rapid.SliceOfN(rapid.Int32Range(0, 3), 0, 40).Draw(t, "tokens")
		other := rapid.SliceOfN(rapid.Int32Range(0, 3), 0, 40).Draw(t, "other")
		a := block.NewChain(nil, testID, "", bt).AppendHashes(nil, tokens)
		b := block.NewChain(nil, testID, "", bt).AppendHashes(nil, other)
		if len(a) != len(tokens)/bt {
			t.Fatalf("%d hashes of %d tokens", len(a), len(tokens))
		}
		same := true
		for i := range min(len(a), len(b)) {
			for j := i * bt; j < (i+1)*bt; j++ {
				same = same && tokens[j] == other[j]
			}
			if (a[i] == b[i]) != same {
				t.Fatalf("block %d: hashes equal is %v, prefixes equal is %v", i, a[i] == b[i], same)
			}
		}
	})
}

// Everything that K/V depends on changes the hash, and no two kinds of it can stand in for each other.
func TestChainSeparatesDomains(t *testing.T) {
	tokens := []int32{1, 2, 3, 4}
	root := func(secret string, id block.Identity, salt string) *block.Chain {
		return block.NewChain([]byte(secret), id, salt, 4)
	}
	base := root("s", testID, "")
	seen := map[block.Hash]string{}
	add := func(name string, h block.Hash) {
		if other, dup := seen[h]; dup {
			t.Errorf("%s and %s collide", name, other)
		}
		seen[h] = name
	}
	add("base", base.Next(base.Root(), tokens))
	for name, c := range map[string]*block.Chain{
		"secret":  root("t", testID, ""),
		"weights": root("s", block.Identity{Weights: block.Digest{9}, Layout: testID.Layout}, ""),
		"layout":  root("s", block.Identity{Weights: testID.Weights, Layout: block.Digest{9}}, ""),
		"swapped": root("s", block.Identity{Weights: testID.Layout, Layout: testID.Weights}, ""),
		"tenant":  root("s", testID, "a"),
	} {
		add(name, c.Next(c.Root(), tokens))
	}
	add("adapter", base.Next(base.Root(), tokens, block.Extra{Type: block.ExtraAdapter, Value: []byte("x")}))
	add("media", base.Next(base.Root(), tokens, block.Extra{Type: block.ExtraMedia, Value: []byte("x")}))
	add("two extras", base.Next(base.Root(), tokens, block.Extra{Type: block.ExtraMedia}, block.Extra{Type: block.ExtraMedia, Value: []byte("x")}))
	add("tokens instead of an extra", base.Next(base.Root(), append(tokens[:4:4], 2, 1, 'x')))
	add("fewer tokens", base.Next(base.Root(), tokens[:3]))
}

func TestLayoutDigestCoversEveryField(t *testing.T) {
	base := layout8B()
	seen := map[block.Digest]string{base.Digest(): "base"}
	for name, change := range map[string]func(*block.Layout){
		"dtype": func(l *block.Layout) { l.DType = block.F16 }, "order": func(l *block.Layout) { l.Order++ },
		"layers": func(l *block.Layout) { l.Layers++ }, "heads": func(l *block.Layout) { l.KVHeads++ },
		"dim": func(l *block.Layout) { l.HeadDim++ }, "tokens": func(l *block.Layout) { l.BlockTokens++ },
		"rank": func(l *block.Layout) { l.TPRank++ }, "size": func(l *block.Layout) { l.TPSize++ },
		"base freq": func(l *block.Layout) { l.RopeBase++ }, "scale": func(l *block.Layout) { l.RopeScale++ },
		"numerics": func(l *block.Layout) { l.Numerics += "x" }, "quantisation": func(l *block.Layout) { l.Quant = block.QuantInt8 },
	} {
		l := base
		change(&l)
		if other, dup := seen[l.Digest()]; dup {
			t.Errorf("changing %s gives the digest of %s", name, other)
		}
		seen[l.Digest()] = name
	}
}

func TestLayoutValidateNamesEveryField(t *testing.T) {
	err := block.Layout{}.Validate()
	for _, field := range []string{"dtype", "order", "Layers", "KVHeads", "HeadDim", "BlockTokens", "TPSize", "Numerics"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error does not name %s: %v", field, err)
		}
	}
	big := layout8B()
	big.BlockTokens = 4096
	if err := big.Validate(); err == nil || !strings.Contains(err.Error(), "lower BlockTokens") {
		t.Errorf("a layer of 16 MiB: %v, want advice to lower BlockTokens", err)
	}
}

func TestQuantNames(t *testing.T) {
	for _, q := range []block.Quant{block.QuantNone, block.QuantInt8} {
		if got, err := block.ParseQuant(q.String()); err != nil || got != q {
			t.Errorf("ParseQuant(%v) = %v, %v", q, got, err)
		}
	}
	if _, err := block.ParseQuant("int4"); err == nil || !strings.Contains(err.Error(), "none or int8") {
		t.Errorf("int4: %v, want what there is", err)
	}
	l := layout8B()
	l.Quant = 9
	if err := l.Validate(); err == nil || !strings.Contains(err.Error(), "quant(9)") {
		t.Errorf("an unknown quantisation: %v", err)
	}
}

func TestTextRoundTrips(t *testing.T) {
	v := testID.Variant()
	text, _ := v.MarshalText()
	var v2 block.Variant
	if err := v2.UnmarshalText(text); err != nil || v2 != v {
		t.Errorf("variant: %v, %v", v2, err)
	}
	var d block.Digest
	if err := d.UnmarshalText([]byte(testID.Weights.String())); err != nil || d != testID.Weights {
		t.Errorf("digest: %v, %v", d, err)
	}
	for _, bad := range []string{"", "abc", strings.Repeat("A", 16), strings.Repeat("!", 64)} {
		if v2.UnmarshalText([]byte(bad)) == nil || d.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestReusableLeavesTheLastToken(t *testing.T) {
	for _, c := range []struct{ n, want int }{{0, 0}, {1, 0}, {16, 0}, {17, 1}, {32, 1}, {33, 2}} {
		if got := block.Reusable(c.n, 16); got != c.want {
			t.Errorf("Reusable(%d, 16) = %d, want %d", c.n, got, c.want)
		}
	}
}

func BenchmarkChain(b *testing.B) {
	const tokens = 32768
	prompt := make([]int32, tokens)
	for i := range prompt {
		prompt[i] = int32(i * 7 % 1024)
	}
	for _, bt := range []int{16, 128} {
		b.Run(fmt.Sprintf("tokens=%d/block=%d", tokens, bt), func(b *testing.B) {
			c := block.NewChain(nil, testID, "", bt)
			dst := make([]block.Hash, 0, tokens/bt)
			b.ReportAllocs()
			for b.Loop() {
				dst = c.AppendHashes(dst[:0], prompt)
			}
			b.ReportMetric(float64(tokens)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mtok/s")
		})
	}
}

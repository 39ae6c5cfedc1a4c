package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/tphakala/simd/cpu"
)

// Tag names the arithmetic that this process uses, like "avx512-3f9c0a51": the instruction set and a digest of what a fixed
// computation gives. Processes with equal tags share K/V, so the tag must differ wherever rounding does. The name alone
// would not: another version of the library may accumulate otherwise on the same processor. It is computed once.
func Tag() string { return tag() }

var tag = sync.OnceValue(func() string { return isa() + "-" + probe() })

func isa() string {
	switch x := cpu.X86; {
	case x.AVX512F && x.AVX512VL:
		return "avx512"
	case x.AVX && x.FMA && x.AVX2:
		return "avx2-fma"
	case x.AVX && x.FMA:
		return "avx-fma"
	case x.SSE2:
		return "sse2"
	case cpu.ARM64.NEON:
		return "neon"
	}
	return "generic"
}

// probe runs every kernel over shapes with full and partial vectors and hashes the bits.
func probe() string {
	// Inputs are slices of one random vector: drawing all of them afresh would take longer than opening a small model.
	const longest = 128 * Span
	rng := rand.New(rand.NewPCG(1, 2))
	base := make([]float32, 2*longest)
	for i := range base {
		base[i] = rng.Float32() - 0.5
	}
	at := 0
	random := func(n int) []float32 {
		at = (at + 8191) % longest
		return base[at : at+n]
	}
	h := sha256.New()
	emit := func(x []float32) {
		for _, v := range x {
			var b [4]byte
			binary.LittleEndian.PutUint32(b[:], math.Float32bits(v))
			h.Write(b[:])
		}
	}
	for _, k := range []int{32, 37, 64, 100, 256, 704, 2048} {
		const n, tokens = RowTile + 3, 2
		x, w, out := random(tokens*k), random(n*k), make([]float32, tokens*n)
		for tile := range Tiles(n) {
			MatTile(out, x, w, tokens, n, k, tile)
		}
		emit(out)
		y := make([]float32, k)
		RMSNorm(y, x[k:], w[:k], 1e-5)
		emit(y)
		SwiGLU(y, w[:k], make([]float32, k))
		emit(y)
	}
	for _, dim := range []int{32, 80, 128} {
		for _, n := range []int{1, 5, 100, Span + 77} {
			plane := func(int) []float32 { return random(dim * Span) }
			out := make([]float32, dim)
			Attend(out, random(dim), make([]float32, ScoreLen(n)), n, plane, plane)
			emit(out)
		}
	}
	rope := NewRope(64, 10000, 1)
	table, x := make([]float32, 64), slices.Clone(random(64))
	for _, pos := range []int{1, 100, 5000} {
		rope.Table(table, pos)
		Rotate(x, table)
		emit(x)
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

// Package kernel is the arithmetic of the llama engine: a few vector operations of github.com/tphakala/simd, blocked for the
// caches. The reasons for the library and the numbers are in docs/decisions/003-linear-algebra.md. Invariant that everything
// above relies on:
//
//   - the bits of every output element depend only on its own inputs, never on how many rows are computed together, by how
//     many threads, or where a buffer lies. Accumulation order is fixed by the position inside a vector alone.
package kernel

import "github.com/tphakala/simd/f32"

// RowTile is the number of weight rows that are kept in the first-level cache while all activations pass by. It is part of
// the arithmetic: rows are grouped by absolute multiples of it, whoever computes them, and the library may round a row of a
// full group of four otherwise than a left-over row.
const RowTile = 16

// Tiles is the number of row tiles in n rows.
func Tiles(n int) int { return (n + RowTile - 1) / RowTile }

// MatTile computes one tile of columns of out = x·wᵀ: rows [tile×RowTile, …) of w against every row of x.
// x is [tokens][k], w is [n][k], out is [tokens][n], all row-major and dense.
func MatTile(out, x, w []float32, tokens, n, k, tile int) {
	first := tile * RowTile
	rows := min(RowTile, n-first)
	w = w[first*k : (first+rows)*k]
	for t := range tokens {
		o := t*n + first
		f32.DotProductStrided(out[o:o+rows], w, x[t*k:t*k+k], rows, k, k)
	}
}

// RMSNorm writes x / rms(x) × weight to dst; all have the same length.
func RMSNorm(dst, x, weight []float32, eps float32) {
	mean := f32.DotProduct(x, x) / float32(len(x))
	f32.Scale(dst, x, rsqrt(mean+eps))
	f32.Mul(dst, dst, weight)
}

// SwiGLU writes silu(gate) × up to gate.
func SwiGLU(gate, up, scratch []float32) {
	scratch = scratch[:len(gate)]
	f32.Sigmoid(scratch, gate)
	f32.Mul(gate, gate, scratch)
	f32.Mul(gate, gate, up)
}

// Add adds x to dst.
func Add(dst, x []float32) { f32.Add(dst, dst, x) }

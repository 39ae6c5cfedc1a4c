package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func random(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// Every element of a product has the same bits whether its row comes alone or among others.
func TestMatTileBatchInvariant(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, k := range []int{1, 7, 16, 33, 64, 65, 100, 256, 704, 768, 2050} {
		for _, n := range []int{1, 3, 16, 18, 37} {
			const tokens = 5
			x, w := random(rng, tokens*k), random(rng, n*k)
			together, alone := make([]float32, tokens*n), make([]float32, tokens*n)
			for tile := range Tiles(n) {
				MatTile(together, x, w, tokens, n, k, tile)
			}
			for tile := Tiles(n) - 1; tile >= 0; tile-- {
				for i := range tokens {
					// Another place in memory, other alignment.
					moved := append(make([]float32, i+1, i+1+k), x[i*k:(i+1)*k]...)[i+1:]
					MatTile(alone[i*n:(i+1)*n], moved, w, 1, n, k, tile)
				}
			}
			if !slices.Equal(together, alone) {
				t.Errorf("n=%d k=%d: rows alone have other bits", n, k)
			}
			for i := range together {
				want, size := 0.0, 0.0
				for j := range k {
					p := float64(x[i/n*k+j]) * float64(w[i%n*k+j])
					want, size = want+p, size+math.Abs(p)
				}
				if math.Abs(float64(together[i])-want) > 1e-6*size+1e-9 {
					t.Fatalf("n=%d k=%d: element %d is %v, want %v", n, k, i, together[i], want)
				}
			}
		}
	}
}

func TestAttend(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, dim := range []int{2, 10, 32, 64, 80, 512} {
		k, v := random(rng, 3*dim*Span), random(rng, 3*dim*Span)
		plane := func(x []float32) func(int) []float32 {
			return func(i int) []float32 { return x[i*dim*Span : (i+1)*dim*Span] }
		}
		at := func(x []float32, pos, d int) float64 { return float64(x[(pos/Span*dim+d)*Span+pos%Span]) }
		for _, n := range []int{1, 2, 15, 16, 17, 63, 64, 65, Span - 1, Span, Span + 1, 2*Span + 100} {
			q, out := random(rng, dim), make([]float32, dim)
			Attend(out, q, make([]float32, ScoreLen(n)), n, plane(k), plane(v))
			weights, total := make([]float64, n), 0.0
			top := math.Inf(-1)
			for pos := range weights {
				for d := range dim {
					weights[pos] += float64(q[d]) * at(k, pos, d)
				}
				top = max(top, weights[pos])
			}
			for pos := range weights {
				weights[pos] = math.Exp(weights[pos] - top)
				total += weights[pos]
			}
			for d := range dim {
				want := 0.0
				for pos, w := range weights {
					want += w / total * at(v, pos, d)
				}
				if math.Abs(float64(out[d])-want) > 5e-5 {
					t.Fatalf("dim=%d n=%d: element %d is %v, want %v", dim, n, d, out[d], want)
				}
			}
		}
	}
}

// What lies behind the last position does not matter, even if it is no number.
func TestAttendIgnoresWhatFollows(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	const dim = 32
	k, v, q := random(rng, dim*Span), random(rng, dim*Span), random(rng, dim)
	for _, n := range []int{1, 5, 8, 31, 100, Span - 1} {
		run := func() []float32 {
			out := make([]float32, dim)
			Attend(out, q, make([]float32, ScoreLen(n)), n, func(int) []float32 { return k }, func(int) []float32 { return v })
			return out
		}
		want := run()
		for d := range dim {
			for pos := n; pos < Span; pos++ {
				k[d*Span+pos], v[d*Span+pos] = float32(math.NaN()), float32(math.Inf(1))
			}
		}
		if got := run(); !slices.Equal(got, want) {
			t.Errorf("n=%d: changed", n)
		}
		k, v = random(rng, dim*Span), random(rng, dim*Span)
	}
}

func TestSwiGLU(t *testing.T) {
	gate, up := make([]float32, 400), make([]float32, 400)
	for i := range gate {
		gate[i], up[i] = float32(i-200)/8, 2
	}
	x := slices.Clone(gate)
	SwiGLU(gate, up, make([]float32, 400))
	for i, g := range x {
		want := 2 * float64(g) / (1 + math.Exp(-float64(g)))
		if math.Abs(float64(gate[i])-want) > 2e-5*math.Abs(want)+2e-7 { // the library clamps at ±20
			t.Errorf("silu(%v) × 2 = %v, want %v", g, gate[i], want)
		}
	}
}

func TestRMSNorm(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	x, w, out := random(rng, 100), random(rng, 100), make([]float32, 100)
	RMSNorm(out, x, w, 1e-5)
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	for i := range out {
		if want := float64(x[i]) / math.Sqrt(sum/100+1e-5) * float64(w[i]); math.Abs(float64(out[i])-want) > 1e-5 {
			t.Errorf("element %d is %v, want %v", i, out[i], want)
		}
	}
}

func TestRope(t *testing.T) {
	r := NewRope(4, 10000, 0.5)
	table, x := make([]float32, 4), []float32{1, 2, 3, 4, 5}
	r.Table(table, 6) // position 3 after scaling: angles 3 and 0.03
	Rotate(x, table)
	for i, want := range []float64{
		1*math.Cos(3) - 2*math.Sin(3), 1*math.Sin(3) + 2*math.Cos(3),
		3*math.Cos(0.03) - 4*math.Sin(0.03), 3*math.Sin(0.03) + 4*math.Cos(0.03), 5,
	} {
		if math.Abs(float64(x[i])-want) > 1e-6 {
			t.Errorf("element %d is %v, want %v", i, x[i], want)
		}
	}
}

func TestTagIsStable(t *testing.T) {
	if a, b := Tag(), isa()+"-"+probe(); a != b || len(a) > 100 {
		t.Errorf("tags are %q and %q", a, b)
	}
}

func BenchmarkMatTile(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	const tokens, n, k = 128, 1024, 256
	x, w, out := random(rng, tokens*k), random(rng, n*k), make([]float32, tokens*n)
	for b.Loop() {
		for tile := range Tiles(n) {
			MatTile(out, x, w, tokens, n, k, tile)
		}
	}
	b.ReportMetric(2*tokens*n*k*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

func BenchmarkAttend(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	const dim, n = 32, 1000
	k, v := random(rng, 4*dim*Span), random(rng, 4*dim*Span)
	q, out, scores := random(rng, dim), make([]float32, dim), make([]float32, ScoreLen(n))
	for b.Loop() {
		Attend(out, q, scores, n, func(i int) []float32 { return k[i*dim*Span:] }, func(i int) []float32 { return v[i*dim*Span:] })
	}
	b.ReportMetric(4*dim*n*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

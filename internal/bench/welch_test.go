package bench

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestWelch(t *testing.T) {
	// By hand: means 3 and 6, variances 2.5 and 10, five values each.
	w := welch([]float64{1, 2, 3, 4, 5}, []float64{2, 4, 6, 8, 10})
	for name, x := range map[string][2]float64{"t": {w.T, -3 / math.Sqrt(2.5)}, "d": {w.D, -3 / 2.5}, "p": {w.P, 0.05778}} {
		if math.Abs(x[0]-x[1]) > 1e-5 {
			t.Errorf("%s = %v, want %v", name, x[0], x[1])
		}
	}
	if w := welch([]float64{2, 2}, []float64{2, 2}); w.T != 0 || w.P != 1 {
		t.Errorf("equal constants: %+v", w)
	}
}

// Of samples with equal means one in twenty is called different at 0.05, however differently they vary.
func TestWelchIsWrongAsOftenAsItSays(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const trials = 4000
	wrong := 0
	for range trials {
		a, b := make([]float64, 60), make([]float64, 60)
		for i := range a {
			a[i], b[i] = random.NormFloat64(), 5*random.NormFloat64()
		}
		if welch(a, b).P < 0.05 {
			wrong++
		}
	}
	if part := float64(wrong) / trials; part < 0.04 || part > 0.065 {
		t.Errorf("%.3f of equal samples have p < 0.05", part)
	}
}

package bench

import "math"

// Welch is the test by Welch of whether two samples have the same mean, without assuming that they vary equally.
type Welch struct {
	N int     `json:"n"` // the smaller sample
	T float64 `json:"t"`
	// D is Cohen's d: the difference of the means in standard deviations. Below 0.2 is called small.
	D float64 `json:"d"`
	// P is how likely a difference of this size or a larger one is between samples of equal mean. It is taken from the normal distribution, which
	// from 60 values on each side is as good as the t distribution: there, p of 0.050 would be 0.052.
	P float64 `json:"p"`
}

// welch compares a with b. T and D are positive if a is larger. Each needs two values.
func welch(a, b []float64) Welch {
	ma, va := moments(a)
	mb, vb := moments(b)
	w := Welch{N: min(len(a), len(b)), P: 1}
	if va+vb == 0 {
		return w // nothing varies: no test
	}
	w.T = (ma - mb) / math.Sqrt(va/float64(len(a))+vb/float64(len(b)))
	w.D = (ma - mb) / math.Sqrt((va+vb)/2)
	w.P = math.Erfc(math.Abs(w.T) / math.Sqrt2)
	return w
}

// moments are the mean and the unbiased variance.
func moments(v []float64) (mean, variance float64) {
	for _, x := range v {
		mean += x / float64(len(v))
	}
	for _, x := range v {
		variance += (x - mean) * (x - mean) / float64(len(v)-1)
	}
	return mean, variance
}

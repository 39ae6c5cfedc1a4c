// Package ewma keeps moving averages of measurements.
package ewma

// Average is an exponentially weighted moving average: each sample counts a quarter. The zero value has seen none, and zero is not a sample
// that it can tell from that. It is not safe for concurrent use.
type Average float64

// Add takes in a sample.
func (a *Average) Add(sample float64) { a.toward(sample, 4) }

// Lean takes in a sample that counts a quarter, or a half if it is lower: one answer that was late for a reason of its own is soon forgotten.
func (a *Average) Lean(sample float64) {
	if sample < float64(*a) {
		a.toward(sample, 2)
		return
	}
	a.toward(sample, 4)
}

func (a *Average) toward(sample, part float64) {
	if *a == 0 {
		*a = Average(sample)
		return
	}
	*a += Average((sample - float64(*a)) / part)
}

// Or is the average, or assumed if there is none yet.
func (a Average) Or(assumed float64) float64 {
	if a == 0 {
		return assumed
	}
	return float64(a)
}

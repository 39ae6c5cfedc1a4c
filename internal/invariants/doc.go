// Package invariants switches checks on that cost too much for production: build with -tags invariants. Memory that was given back is
// then filled with a pattern, so that a reader that kept a view sees garbage instead of plausible K/V, and a writer is caught when the
// memory is used again.
package invariants

// pattern is what freed memory holds: no float16, bfloat16 or float32 of it is a plausible activation.
const pattern = 0xdb

// Poison marks b as free. It does nothing unless Enabled.
func Poison(b []byte) {
	if !Enabled || len(b) == 0 {
		return
	}
	b[0] = pattern
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// Poisoned reports whether nobody wrote to b since Poison. It is true unless Enabled.
func Poisoned(b []byte) bool {
	if Enabled {
		for _, x := range b {
			if x != pattern {
				return false
			}
		}
	}
	return true
}

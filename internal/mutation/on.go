//go:build kvtier_mutations

package mutation

import (
	"os"
	"sync/atomic"
)

// Enabled says that this build can be mutated.
const Enabled = true

// Env names the bug that a whole process is to have.
const Env = "KVTIER_MUTATION"

// seeded is the one variable of a package that this project allows itself, because only tests' builds have it.
var seeded atomic.Pointer[Name]

// Is reports whether the bug is seeded.
func Is(n Name) bool {
	p := seeded.Load()
	if p == nil {
		first := Name(os.Getenv(Env))
		seeded.CompareAndSwap(nil, &first)
		p = seeded.Load()
	}
	return *p == n
}

// Seed plants a bug in place of the one before; None removes it.
func Seed(n Name) { seeded.Store(&n) }

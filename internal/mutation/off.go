//go:build !kvtier_mutations

package mutation

// Enabled says that this build can be mutated.
const Enabled = false

// Is reports whether the bug is seeded: never, in this build.
func Is(Name) bool { return false }

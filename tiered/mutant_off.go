//go:build !kvtier_mutations

package tiered

// The bugs that builds for internal/stalecheck can have on the read path.

func countUnchecked() bool  { return false }
func sharedFlights() bool   { return false }
func lateInsert() bool      { return false }
func keepHot() bool         { return false }
func ignoreLease() bool     { return false }
func publishPartial() bool  { return false }
func commitUnchecked() bool { return false }

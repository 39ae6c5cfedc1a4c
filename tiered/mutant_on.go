//go:build kvtier_mutations

package tiered

import "github.com/kvtier/kvtier/internal/mutation"

func countUnchecked() bool  { return mutation.Is(mutation.NoRecheck) }
func sharedFlights() bool   { return mutation.Is(mutation.FlightWithoutGen) }
func lateInsert() bool      { return mutation.Is(mutation.LateInsert) }
func keepHot() bool         { return mutation.Is(mutation.KeepHot) }
func ignoreLease() bool     { return mutation.Is(mutation.IgnoreLease) }
func publishPartial() bool  { return mutation.Is(mutation.PublishPartial) }
func commitUnchecked() bool { return sharedFlights() || lateInsert() }

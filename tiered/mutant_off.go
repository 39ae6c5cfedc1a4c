//go:build !kvtier_mutations

package tiered

import "github.com/kvtier/kvtier/store"

// What mutant_on.go can make wrong, one bug at a time, is right here.

func countUnchecked() bool  { return false }
func sharedFlights() bool   { return false }
func lateInsert() bool      { return false }
func keepHot() bool         { return false }
func ignoreLease() bool     { return false }
func publishPartial() bool  { return false }
func commitUnchecked() bool { return false }

func labelAtDequeue() bool { return false }

func (c *Cache) relabelled(items []store.Item, _ []*entry) []store.Item { return items }

func reuseEarly(*entry) {}

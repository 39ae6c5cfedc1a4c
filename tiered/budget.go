package tiered

import (
	"errors"
	"fmt"
)

// BudgetError means that a bound of Options is smaller than what it bounds: not even one block of the layout fits, so that nothing would be
// kept, stored or fetched, and nobody would see why.
type BudgetError struct {
	Field string // of Options
	Bytes int64  // what it is
	Block int64  // what one block takes up
	Least int64  // with which it begins to be useful
}

func (e *BudgetError) Error() string {
	return fmt.Sprintf("tiered: %s is %s, but one block of this model takes up %s: set it to %s or more, or to 0 for a default that fits",
		e.Field, mebibytes(e.Bytes), mebibytes(e.Block), mebibytes(e.Least))
}

// mebibytes never shows less than there is to set.
func mebibytes(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", (n+1<<10-1)>>10)
	}
	return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20)
}

// How many blocks a budget holds unless it is told otherwise. One is enough to work at all; a fetch has the wire wait for nobody from four on, and
// a chain in the hot tier wants some length.
const (
	hotBlocks   = 8
	spillBlocks = 4
	fillBlocks  = 4
)

// NoHotTier as Options.HotBytes keeps nothing in memory beyond the request: everything that is reused comes from the remote tier.
const NoHotTier = -1

// withBudgets sets the bounds that are 0, for blocks with slabs of so many bytes, and refuses those that are too small for one.
func (o Options) withBudgets(slab int64) (Options, error) {
	cost := slab + entryOverhead
	var errs []error
	budget := func(field string, v *int64, used bool, unless, block, blocks int64) {
		switch {
		case *v == 0:
			*v = max(unless, blocks*block)
		case used && *v < block:
			errs = append(errs, &BudgetError{Field: field, Bytes: *v, Block: block, Least: blocks * block})
		}
	}
	if o.HotBytes == NoHotTier {
		o.HotBytes = 0
	} else {
		budget("HotBytes", &o.HotBytes, true, 256<<20, cost, hotBlocks)
	}
	budget("SpillBytes", &o.SpillBytes, o.Remote != nil, 64<<20, cost, spillBlocks)
	budget("FillBytes", &o.FillBytes, o.Remote != nil, min(256<<20, 32<<20+o.HotBytes/16), slab, fillBlocks)
	return o, errors.Join(errs...)
}

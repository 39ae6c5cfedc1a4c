//go:build kvtier_mutations

package tiered

import (
	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/store"
)

func countUnchecked() bool  { return mutation.Is(mutation.NoRecheck) }
func sharedFlights() bool   { return mutation.Is(mutation.FlightWithoutGen) }
func lateInsert() bool      { return mutation.Is(mutation.LateInsert) }
func keepHot() bool         { return mutation.Is(mutation.KeepHot) }
func ignoreLease() bool     { return mutation.Is(mutation.IgnoreLease) }
func publishPartial() bool  { return mutation.Is(mutation.PublishPartial) }
func commitUnchecked() bool { return sharedFlights() || lateInsert() }

// labelAtDequeue is the bug that blocks get their labels when they leave the queue: those of another generation stay in it, and are stored
// under the generation of that moment.
func labelAtDequeue() bool { return mutation.Is(mutation.LabelAtDequeue) }

// relabelled is what is stored for blocks under that bug.
func (c *Cache) relabelled(items []store.Item, blocks []*entry) []store.Item {
	if !labelAtDequeue() {
		return items
	}
	items = items[:0]
	g := c.View().Generation
	for _, e := range blocks {
		for p, frame := range e.frames {
			h := e.header(p)
			h.Identity, h.Epoch, h.Act = g.Identity, g.Epoch, codec.Act(g.Act[:])
			_ = c.format.Seal(frame, h)
			items = append(items, store.Item{Key: block.Key(g.Identity.Variant(), g.Epoch, e.hash, p), Value: frame})
		}
	}
	return items
}

// reuseEarly is the bug that the memory of an evicted block is used again while it may be read.
func reuseEarly(e *entry) {
	if mutation.Is(mutation.EarlyReuse) {
		e.slabs.put(e.slab)
	}
}

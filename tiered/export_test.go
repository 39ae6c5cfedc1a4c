package tiered

import (
	"context"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
)

// Watch is what a request looks out with for blocks that another worker computes.
type Watch struct{ *watch }

// Claim is claimOrWatch; nil for no watch.
func (c *Cache) Claim(ctx context.Context, v View, missing []block.Hash, est gate.Claim) *Watch {
	l := Lookup{View: v}
	if w := c.claimOrWatch(ctx, l.scope(), missing, est); w != nil {
		return &Watch{w}
	}
	return nil
}

// Pause waits as long as is worth while, and returns how many blocks have come.
func (w *Watch) Pause(ctx context.Context) int { return w.pause(ctx) }

// Over reports whether no more blocks will be found.
func (w *Watch) Over() bool { return w.over() }

// Stop ends the watch.
func (w *Watch) Stop() { w.stop() }

package worker

import (
	"context"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/worker/engine"
)

// Checkpoint is a set of weights that a worker can load.
type Checkpoint struct {
	Label    string
	Identity block.Identity // of its bytes, as an engine that has loaded it says
	Open     func(context.Context) (engine.Engine, error)
}

// Record is what a replica follows: a coordinator.Watch.
type Record interface {
	Grants
	Changed() <-chan struct{}
	Announce()
}

const (
	// refreshEvery bounds how long a view that no change announces goes unnoticed: leases are renewed and expire silently.
	refreshEvery = 250 * time.Millisecond
	// swapRetry is the pause after a swap that failed.
	swapRetry = 5 * time.Second
)

// Follow keeps the replica in step with the record until ctx ends: it renews the cache's view, and when the resident variant is no
// longer active but one of checkpoints is, it swaps to the one activated last.
func (r *Replica) Follow(ctx context.Context, record Record, checkpoints []Checkpoint) {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	var retryAt time.Time
	for {
		changed := record.Changed() // before the view that it follows, so that no change falls between them
		// A poll that overtakes this view wakes the loop again.
		if next, ok := r.Step(record.View(), checkpoints); ok && time.Now().After(retryAt) {
			if err := r.SwapWeights(ctx, next.Label, next.Open); err != nil {
				r.opts.Logger.Error("weights not swapped", "label", next.Label, "err", err, "retry", swapRetry)
				retryAt = time.Now().Add(swapRetry)
			}
			record.Announce()
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Step is one turn of Follow without its waiting: it renews the cache's view and returns the checkpoint that the replica should swap
// to, if there is one.
func (r *Replica) Step(v coordinator.View, checkpoints []Checkpoint) (Checkpoint, bool) {
	r.Refresh()
	return r.outdated(v, checkpoints)
}

// outdated returns the checkpoint to swap to, if there is reason to.
func (r *Replica) outdated(v coordinator.View, checkpoints []Checkpoint) (Checkpoint, bool) {
	e, _ := r.Resident()
	if v.State == coordinator.Unsynced {
		return Checkpoint{}, false
	}
	if now, ok := v.Version(e.Identity().Variant()); ok && now.State == coordinator.Active {
		return Checkpoint{}, false
	}
	checkpoints = r.loadable(checkpoints)
	for _, active := range v.Active() {
		for _, c := range checkpoints {
			if c.Identity.Variant() == active.Variant {
				return c, true
			}
		}
	}
	return Checkpoint{}, false
}

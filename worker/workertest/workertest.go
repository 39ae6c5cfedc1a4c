// Package workertest starts workers for tests.
package workertest

import (
	"context"
	"testing"
	"time"

	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
)

// Start starts a worker on o.Engine with a cache of its own, which takes the engine's layout. Both are closed when the test ends.
func Start(tb testing.TB, o worker.Options, cache tiered.Options) *worker.Replica {
	tb.Helper()
	cache.Layout = o.Engine.Layout()
	c, err := tiered.New(cache)
	if err != nil {
		tb.Fatal(err)
	}
	o.Cache = c
	r, err := worker.NewReplica(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // what a dead remote tier does not take is dropped
		defer cancel()
		if err := r.Close(ctx); err != nil {
			tb.Error(err)
		}
		c.Close(ctx)
	})
	return r
}

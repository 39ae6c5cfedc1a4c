// Package pause waits.
package pause

import (
	"context"
	"time"
)

// For waits for d and returns nil, or returns ctx's error as soon as ctx ends. It does not wait if d is not positive.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

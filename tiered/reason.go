package tiered

import (
	"context"
	"errors"

	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/store"
)

// Reason says why a block was not served from the cache.
type Reason uint8

// Reasons of a miss.
const (
	MissNone        Reason = iota // everything asked for was there
	MissCold                      // in no tier: never computed, evicted or expired
	MissUnshared                  // not hot, and nothing else may be used: no store, no lease, or revoked
	MissStale                     // the generation changed while the request ran
	MissCorrupt                   // a stored value failed its checks
	MissForeign                   // an intact value of another identity lay under the key
	MissVersion                   // a value of another format version
	MissDeadline                  // the remote tier took too long
	MissUnavailable               // the breaker is open: the remote tier failed lately and was not asked
	MissFault                     // the remote tier failed
	MissBudget                    // as many bytes as allowed are being fetched already
	reasons
)

var reasonNames = [reasons]string{"none", "cold", "unshared", "stale", "corrupt", "foreign", "version", "deadline", "unavailable", "fault", "budget"}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return "unknown"
}

// Degraded reports whether the reason is a sick remote tier rather than an absent value.
func (r Reason) Degraded() bool {
	return r == MissDeadline || r == MissUnavailable || r == MissFault
}

func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return MissCold
	case errors.Is(err, codec.ErrCorrupt), errors.Is(err, store.ErrTooLarge):
		return MissCorrupt
	case errors.Is(err, codec.ErrForeign):
		return MissForeign
	case errors.Is(err, codec.ErrVersion):
		return MissVersion
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed):
		return MissUnavailable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return MissDeadline
	}
	return MissFault
}

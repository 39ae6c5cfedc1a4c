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
	MissNone       Reason = iota // everything asked for was there
	MissCold                     // in no tier, and this worker does not know that it ever was
	MissEvicted                  // in no tier; this worker had it, and it left for space before its time
	MissExpired                  // in no tier; this worker stored it, longer ago than values live
	MissIncomplete               // only some of its parts are stored
	MissUnshared                 // not hot, and nothing else may be used: no store, no lease, or revoked
	MissEpoch                    // the generation changed while the request ran, or has ended since this worker stored the block
	MissTenant                   // the tenant was purged while the request ran
	MissCorrupt                  // a stored value failed its checks
	MissOversize                 // a stored value is longer than any of this layout
	MissVariant                  // an intact value of other weights, layout, tenant or place lay under the key
	MissVersion                  // a value of another format version
	MissDeadline                 // the remote tier took too long
	MissBreaker                  // the breaker is open: the remote tier failed lately and was not asked
	MissFault                    // the remote tier failed
	MissBudget                   // as many bytes as allowed are being fetched already
	MissGate                     // computing was estimated to be faster than loading
	MissShort                    // the prompt fills no block: there is nothing to look for
	Reasons                      // how many there are
)

var reasonNames = [Reasons]string{"none", "cold", "evicted", "expired", "incomplete", "unshared", "epoch", "tenant", "corrupt", "oversize", "variant",
	"version", "deadline", "breaker", "fault", "budget", "gate", "short"}

func (r Reason) String() string {
	if r < Reasons {
		return reasonNames[r]
	}
	return "unknown"
}

// Absent reports whether the reason is that nothing is stored: each of the blocks behind has its own.
func (r Reason) Absent() bool {
	return r == MissCold || r == MissEvicted || r == MissExpired || r == MissIncomplete || r == MissEpoch
}

// Degraded reports whether the reason is a sick remote tier rather than an absent value.
func (r Reason) Degraded() bool {
	return r == MissDeadline || r == MissBreaker || r == MissFault
}

func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return MissCold
	case errors.Is(err, codec.ErrCorrupt), errors.Is(err, store.ErrNotValue):
		return MissCorrupt
	case errors.Is(err, store.ErrTooLarge):
		return MissOversize
	case errors.Is(err, codec.ErrForeign):
		return foreign(err)
	case errors.Is(err, codec.ErrVersion):
		return MissVersion
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed):
		return MissBreaker
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return MissDeadline
	}
	return MissFault
}

// foreign tells a late write of an activation that has ended, which is no fault of anybody, from a value that has no business under its key.
func foreign(err error) Reason {
	if e, ok := errors.AsType[*codec.Error](err); ok && (e.Field == codec.FieldEpoch || e.Field == codec.FieldAct) {
		return MissEpoch
	}
	return MissVariant
}

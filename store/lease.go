package store

import (
	"context"
	"time"
)

// MaxLease is the longest time that a Leaser grants: whoever dies while holding one delays others by that at most.
const MaxLease = 30 * time.Second

// Leaser is an optional power of a store: to claim a name for a short time, so that of several workers which are about to do the same work
// one does it and the others know. It is a hint and no lock: a claim may be lost or granted twice, when the store fails over or forgets,
// and nothing but work may depend on it. It ends by itself.
type Leaser interface {
	// Lease claims key for ttl, at most MaxLease, unless somebody holds it, the caller included. note is for others to read, at most
	// MaxKeyBytes long. It takes one round trip.
	Lease(ctx context.Context, key, note string, ttl time.Duration) (Lease, error)
}

// Lease is the answer to a claim.
type Lease struct {
	// Granted means that the caller holds the claim from now on.
	Granted bool
	// Note is what the holder left, and Left how long its claim still lasts; of somebody else's only.
	Note string
	Left time.Duration
}

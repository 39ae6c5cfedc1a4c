package coordinator

import (
	"fmt"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// snapshot is an adopted record with the beginning of its lease. It is immutable once published.
type snapshot struct {
	view     View
	record   Record        // what view was made of; zero while unsynced
	from     time.Time     // start of the poll that last confirmed it; zero while unsynced
	topEpoch block.Epoch   // highest epoch ever seen
	refused  uint64        // generation that the last poll found and refused, 0 if none
	changed  chan struct{} // closed when another generation is adopted
}

// stateAt judges the lease at a moment. The monotonic clock stands still while a virtual machine is suspended, the wall clock
// does not: whichever has advanced further counts. A wall clock that is stepped forward costs one poll's time without a lease.
func (s *snapshot) stateAt(now time.Time, lease time.Duration) LeaseState {
	switch {
	case s.from.IsZero():
		return Unsynced
	case now.Sub(s.from) >= lease || now.Round(0).Sub(s.from.Round(0)) >= lease:
		return Expired
	}
	return Leased
}

// adopt decides what a poll that began at from and found a valid record makes of the view: the next snapshot, which may be the same
// generation with a renewed lease, or the reason to refuse. It is pure.
func (s *snapshot) adopt(found Stored, from time.Time, lease time.Duration) (*snapshot, error) {
	sum := found.Sum()
	switch {
	case found.Gen < s.view.Gen && !mutation.Is(mutation.GoBack):
		// A failover, a flush or a restored backup lost writes. The coordinator will write what it remembers again.
		return nil, fmt.Errorf("%w: generation went backwards from %d to %d", ErrRecord, s.view.Gen, found.Gen)
	case found.Gen == s.view.Gen && sum != s.view.Sum:
		return nil, fmt.Errorf("%w: generation %d came back with another content", ErrRecord, found.Gen)
	case found.Gen == s.view.Gen:
		next := *s
		next.from, next.refused = from, 0
		next.view.LeaseUntil, next.view.Problem = from.Add(lease), ""
		return &next, nil
	}
	// Every grant is either one that the last view had, or given out after it. Anything else is an activation that was
	// purged or revoked since, brought back by writes that were built on a record which had lost that.
	for v, e := range found.Variants {
		if !e.State.Live() || e.Epoch > s.topEpoch {
			continue
		}
		if mutation.Is(mutation.Resurrect) || mutation.Is(mutation.GoBack) {
			continue
		}
		if had, ok := s.view.Grant(v); !ok || had.Epoch != e.Epoch || had.Act != e.Act && !mutation.Is(mutation.NumberOnly) {
			return nil, fmt.Errorf("%w: generation %d brings back epoch %d of %v", ErrRecord, found.Gen, e.Epoch, v)
		}
	}
	// The same for purges of tenants: one that this worker has acted on must not be undone.
	if !keepsCuts(s.record, found.Record) {
		return nil, fmt.Errorf("%w: generation %d undoes the purge of a tenant", ErrRecord, found.Gen)
	}
	return &snapshot{
		record: found.Record,
		view: View{
			Model: s.view.Model, Gen: found.Gen, Sum: sum,
			LeaseUntil: from.Add(lease), versions: found.Versions(), cuts: cutsOf(found.Record),
		},
		from:     from,
		topEpoch: max(s.topEpoch, found.LastEpoch),
		changed:  make(chan struct{}),
	}, nil
}

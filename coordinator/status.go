package coordinator

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// Status is everything that is known about a model: what `kvtier model status` shows.
type Status struct {
	Model string `json:"model"`
	Gen   uint64 `json:"gen"`
	Term  uint64 `json:"term"`
	// Versions lists every variant, newest activation first.
	Versions []Version `json:"versions"`
	// Workers lists the living workers of the model by address.
	Workers      []Worker     `json:"workers"`
	Invalidation Invalidation `json:"invalidation"`
	// Reclaims lists epochs whose unreachable entries are still to be deleted.
	Reclaims []Dead `json:"reclaims"`
	// Reclaiming is the progress of the leader's current or last pass, nil if there was none lately.
	Reclaiming *ReclaimProgress `json:"reclaiming,omitempty"`
	// Tenants lists those that take up most, by what the workers say of themselves, and every tenant that was purged.
	Tenants []TenantStatus `json:"tenants"`
	// Leader is the owner of the lease: it alone reconciles and reclaims. "" if nobody leads at this moment.
	Leader string `json:"leader,omitempty"`
	// Problem says what keeps this coordinator from its work, "" if nothing does.
	Problem string `json:"problem,omitempty"`
}

// TenantStatus is what one tenant takes up on all living workers that name it.
type TenantStatus struct {
	TenantUse
	Purged   uint64    `json:"purged,omitzero"` // generation of its last purge since the whole model was purged, 0 if there was none
	PurgedAt time.Time `json:"purged_at,omitzero"`
}

// Worker is a living worker as status shows it.
type Worker struct {
	Heartbeat
	// Acknowledged says that the worker has acted on the current generation.
	Acknowledged bool `json:"acknowledged"`
	// Invalidated says that it has acted on the last generation that took a grant away, or holds none.
	Invalidated bool `json:"invalidated"`
	// Residency is the state of its resident variant in the record, "" if that is unknown.
	Residency State `json:"residency,omitempty"`
}

// Invalidation is the progress of the last purge or revocation.
type Invalidation struct {
	// Complete says that no living worker can use entries that were purged or revoked. A worker that is cut off from Redis is not
	// among the living; under on-expiry strict it has stopped by itself, under local it goes on until it is back.
	Complete bool      `json:"complete"`
	Gen      uint64    `json:"gen"`                // generation that took the last grant away, 0 if none did
	Since    time.Time `json:"since,omitzero"`     // when
	Lagging  []string  `json:"lagging,omitempty"`  // incarnations that have not acted on it
	Workers  int       `json:"workers"`            // living workers
	Acked    int       `json:"acked"`              // of them, how many have acted on Gen
	Reclaims int       `json:"reclaims,omitempty"` // dead epochs whose entries are not yet deleted twice
}

// statusOf builds a model's status from its record and the heartbeats of all models. It is pure.
func statusOf(r Record, sum Sum, beats []Heartbeat) Status {
	s := Status{
		Model: r.Model, Gen: r.Gen, Term: r.Term,
		Versions: r.Versions(), Workers: []Worker{}, Reclaims: slices.Clone(r.Dead),
		Invalidation: Invalidation{Gen: r.Cut, Reclaims: len(r.Dead)},
	}
	if s.Reclaims == nil {
		s.Reclaims = []Dead{}
	}
	if r.CutAt != 0 {
		s.Invalidation.Since = time.UnixMilli(r.CutAt).UTC()
	}
	for _, h := range beats {
		if h.Model != r.Model {
			continue
		}
		w := Worker{
			Heartbeat:    h,
			Acknowledged: h.Gen == r.Gen && h.Sum == sum,
			Invalidated:  invalidated(h, r.Cut),
		}
		if h.Variant != (block.Variant{}) {
			w.Residency = r.Variants[h.Variant].State
		}
		s.Workers = append(s.Workers, w)
		if w.Invalidated {
			s.Invalidation.Acked++
		} else {
			s.Invalidation.Lagging = append(s.Invalidation.Lagging, h.Incarnation)
		}
	}
	s.Tenants = tenantsOf(r, s.Workers)
	slices.SortFunc(s.Workers, func(a, b Worker) int {
		return slices.Compare([]string{a.Address, a.Incarnation}, []string{b.Address, b.Incarnation})
	})
	slices.Sort(s.Invalidation.Lagging)
	s.Invalidation.Workers = len(s.Workers)
	s.Invalidation.Complete = len(s.Invalidation.Lagging) == 0
	return s
}

// tenantsOf adds up what workers say, largest first.
func tenantsOf(r Record, workers []Worker) []TenantStatus {
	sum := map[block.Digest]TenantStatus{}
	for _, w := range workers {
		for _, u := range w.Tenants {
			t := sum[u.Namespace]
			t.HotBytes, t.StoredBytes = t.HotBytes+u.HotBytes, t.StoredBytes+u.StoredBytes
			sum[u.Namespace] = t
		}
	}
	for ns, cut := range r.Tenants {
		t := sum[ns]
		t.Purged, t.PurgedAt = cut.Gen, time.UnixMilli(cut.Since).UTC()
		sum[ns] = t
	}
	all := make([]TenantStatus, 0, len(sum))
	for ns, t := range sum {
		t.Namespace = ns
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b TenantStatus) int {
		return cmp.Or(cmp.Compare(b.HotBytes+b.StoredBytes, a.HotBytes+a.StoredBytes), bytes.Compare(a.Namespace[:], b.Namespace[:]))
	})
	return all
}

// invalidated reports whether a worker has acted on generation cut. One without a record was granted nothing.
func invalidated(h Heartbeat, cut uint64) bool { return h.Gen >= cut || h.State == Unsynced }

// due reports which pass over a dead epoch may run now: 0 for none, 1 or 2. The first waits until every living worker has acted on the
// generation that killed it, or for the lease; the second, which catches writers that were late, for the lease after the first.
func (d Dead) due(now time.Time, lease time.Duration, model string, beats []Heartbeat) int {
	if mutation.Is(mutation.EagerReclaim) {
		return 2
	}
	// A wall clock that was stepped back must not keep garbage for the length of the step.
	elapsed := func(since int64) bool { ms := now.UnixMilli(); return ms < since || ms-since >= lease.Milliseconds() }
	if d.Swept != 0 {
		if elapsed(d.Swept) {
			return 2
		}
		return 0
	}
	living, acked := 0, 0
	for _, h := range beats {
		if h.Model == model {
			living++
			if invalidated(h, d.Gen) {
				acked++
			}
		}
	}
	if living > 0 && acked == living || elapsed(d.Since) {
		return 1
	}
	return 0
}

// Result is the answer to a change.
type Result struct {
	Model   string `json:"model"`
	Gen     uint64 `json:"gen"`     // generation of the record that contains the change
	Changed bool   `json:"changed"` // false if it stood there already
	// Version is the registered variant, for Register only.
	Version *Version `json:"version,omitempty"`
	// Versions lists every variant, newest activation first.
	Versions []Version `json:"versions"`
}

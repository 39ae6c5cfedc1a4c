package coordinator

import (
	"maps"
	"slices"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// Why a record has to be written again.
const (
	reasonNone     = ""
	reasonLost     = "lost"     // Redis has none, or one that cannot be read
	reasonRollback = "rollback" // Redis has one that lacks writes which this coordinator remembers
	reasonSeen     = "seen"     // workers have seen writes that nobody remembers
)

// Reconcile decides what to do about the difference between what a coordinator remembers, what Redis holds and what workers say that
// they have seen. Known and found may each be nil; a damaged record counts as none. It returns the record to write and
// why, or found itself and "" if nothing is wrong. It is pure.
func Reconcile(known, found *Stored, beats []Heartbeat, s Stamp) (Record, string, error) {
	var next Record
	reason := reasonNone
	switch {
	case known == nil && found == nil:
		return Record{}, reasonNone, nil
	case found == nil:
		ed := edit(known.Record, s)
		ed.dirty = true
		again, err := ed.done()
		if err != nil {
			return Record{}, reasonNone, err
		}
		next, reason = again, reasonLost
	case known == nil || progress(known, found) || mutation.Is(mutation.TrustRollback):
		next = found.Record
	default:
		joined, err := join(known.Record, found.Record, s)
		if err != nil {
			return Record{}, reasonNone, err
		}
		next, reason = joined, reasonRollback
	}
	var gen uint64
	var epoch block.Epoch
	unknown := false
	for _, h := range beats {
		if h.Model != next.Model {
			continue
		}
		if h.Epoch > next.LastEpoch || !covered(h, next.Gen, reason, known, found) {
			unknown = true
		}
		gen, epoch = max(gen, h.Gen), max(epoch, h.Epoch)
	}
	if !unknown {
		return next, reason, nil
	}
	// A write that revoked or purged may be among those that are lost. The states are all we have; the entries are cut off.
	next = next.clone()
	next.Gen, next.LastEpoch = max(next.Gen, gen), max(next.LastEpoch, epoch)
	ed := edit(next, s)
	ed.dirty = true
	for _, x := range next.Versions() {
		if x.State.Live() {
			ed.renew(x.Variant)
		}
	}
	next, err := ed.done()
	return next, reasonSeen, err
}

// covered reports whether all that a worker has seen is contained in the record about to stand in Redis.
func covered(h Heartbeat, gen uint64, reason string, known, found *Stored) bool {
	if h.Gen > gen || reason != reasonNone && h.Gen == gen {
		return false // the second: gen is about to be given out, and the worker has seen another record under it
	}
	forked := false
	for _, s := range []*Stored{known, found} {
		if s != nil && h.Gen == s.Gen {
			if h.Sum == s.Sum() {
				return !refuses(h, reason, found)
			}
			forked = true
		}
	}
	return !forked && !refuses(h, reason, found)
}

// refuses reports whether the worker rejects the record in Redis, which is going to stay.
func refuses(h Heartbeat, reason string, found *Stored) bool {
	return reason == reasonNone && h.Refused != 0 && h.Refused == found.Gen && h.Gen < found.Gen
}

// progress reports whether found can have come from known by further writes: no change that known contains is missing.
func progress(known, found *Stored) bool {
	if found.Gen <= known.Gen {
		return found.Gen == known.Gen && string(found.raw) == string(known.raw)
	}
	if found.LastEpoch < known.LastEpoch {
		return false
	}
	if !keepsCuts(known.Record, found.Record) {
		return false
	}
	for v, k := range known.Variants {
		// A variant that is listed no more was forgotten, which takes nothing but its grant.
		if f, ok := found.Variants[v]; ok && f.Gen <= k.Gen && f != k {
			return false
		}
	}
	return true
}

// join merges two records of which neither contains the other. For every variant the later change wins, at the same generation the one
// that takes more away. Live entries on which the two differ get a new epoch: workers have seen either side, or neither.
func join(known, found Record, s Stamp) (Record, error) {
	base := found.clone()
	base.Gen, base.Term = max(known.Gen, found.Gen), max(known.Term, found.Term)
	base.LastEpoch = max(known.LastEpoch, found.LastEpoch)
	base.Cut, base.CutAt = max(known.Cut, found.Cut), max(known.CutAt, found.CutAt)
	ed := edit(base, s)
	ed.dirty = true
	for _, d := range known.Dead {
		ed.bury(d)
	}
	all := maps.Clone(base.Variants)
	maps.Copy(all, known.Variants)
	for _, v := range slices.SortedFunc(maps.Keys(all), func(a, b block.Variant) int { return slices.Compare(a[:], b[:]) }) {
		k, inKnown := known.Variants[v]
		f, inFound := found.Variants[v]
		if inKnown && inFound && k == f {
			continue
		}
		winner := f
		if !inFound || inKnown && later(k, f) {
			winner = k
		}
		ed.kill(v, k.Epoch)
		ed.kill(v, f.Epoch)
		winner.Epoch, winner.Act = 0, Act{}
		if winner.State.Live() {
			winner.Epoch, winner.Act, winner.Since = ed.nextEpoch(), ed.act, ed.ms
		}
		ed.put(v, winner)
	}
	ed.trim()
	ed.joinCuts(known, found)
	return ed.done()
}

// joinCuts merges purges of tenants. One that a side lacks is kept, which costs the tenant a cold start at most; where both have one and
// they differ, entries were stored behind either, so that a third has to follow. ed.rec comes from found.
func (ed *editor) joinCuts(known, found Record) {
	for ns, k := range known.Tenants {
		switch f, ok := found.Tenants[ns]; {
		case ok && f != k:
			ed.cut(ns)
		case !ok:
			if ed.rec.Tenants == nil {
				ed.rec.Tenants = map[block.Digest]TenantCut{}
			}
			ed.rec.Tenants[ns] = k
		}
	}
	if len(ed.rec.Tenants) > MaxTenants {
		ed.renewAll()
	}
}

// keepsCuts reports whether every purge of a tenant that before contains also holds in after: it stands there, or a later one of the
// same tenant does, or nothing of what was live before is reachable any more.
func keepsCuts(before, after Record) bool {
	lost := false
	for ns, b := range before.Tenants {
		a, ok := after.Tenants[ns]
		lost = lost || !ok || a != b && a.Gen <= before.Gen
	}
	if !lost {
		return true
	}
	for v, b := range before.Variants {
		a := after.Variants[v]
		if b.State.Live() && a.State.Live() && a.Epoch == b.Epoch && a.Act == b.Act {
			return false
		}
	}
	return true
}

// later reports whether a's last change is to be preferred over b's.
func later(a, b Entry) bool {
	if a.Gen != b.Gen {
		return a.Gen > b.Gen
	}
	return a.State.rank() > b.State.rank()
}

// trim brings a joined record back under MaxVariants: what is not live is forgotten, then the oldest activations are.
func (ed *editor) trim() {
	for len(ed.rec.Variants) > MaxVariants {
		vs := ed.rec.Versions()
		victim := vs[len(vs)-1] // not live, if any is not
		for _, x := range vs {
			if !x.State.Live() && x.Gen < victim.Gen {
				victim = x
			}
		}
		ed.kill(victim.Variant, victim.Epoch)
		delete(ed.rec.Variants, victim.Variant)
	}
	// A dead epoch that the other side had listed may be live on neither side now, but never on both lists.
	ed.rec.Dead = slices.DeleteFunc(ed.rec.Dead, func(d Dead) bool { return ed.rec.Variants[d.Variant].Epoch == d.Epoch })
}

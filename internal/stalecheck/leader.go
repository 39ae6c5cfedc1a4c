package stalecheck

import (
	"errors"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
)

// leader is a coordinator: the real pure core, driven as coordinator.Coordinator drives it. All of them act at once; there is no election.
type leader struct {
	w     *world
	name  string
	known *coordinator.Stored // what it remembers
	cut   bool

	pending *write // a change that was computed and not yet written
	beats   []coordinator.Heartbeat
	reseen  time.Time
}

type write struct {
	prev   coordinator.Stored
	base   coordinator.Record
	next   coordinator.Record
	reason string
	sweep  *coordinator.Dead
}

func newLeader(w *world, name string) *leader { return &leader{w: w, name: name} }

// read loads the record; a missing or damaged one is nil.
func (l *leader) read() (prev coordinator.Stored, found *coordinator.Stored, err error) {
	if l.cut {
		return prev, nil, errDown
	}
	prev, err = l.w.control.load()
	if err == nil {
		return prev, &prev, nil
	}
	return prev, nil, nil
}

// update computes a change on what stands in Redis and what this coordinator remembers; commit writes it.
func (l *leader) update(what string, create bool, fn func(coordinator.Record, coordinator.Stamp) (coordinator.Record, error)) bool {
	w := l.w
	prev, found, err := l.read()
	if err != nil || found == nil && l.known == nil && prev.Raw() != nil {
		return false
	}
	stamp := w.stamp()
	base, reason, err := coordinator.Reconcile(l.known, found, nil, stamp)
	w.check(iEpoch, err == nil, "%s reconciles: %v", l.name, err)
	if base.V == 0 {
		if !create {
			return false
		}
		base = coordinator.NewRecord(model)
	}
	next, err := fn(base, stamp)
	if err != nil {
		return false // no such version yet
	}
	if reason == "" && next.Gen == base.Gen {
		if found != nil {
			l.remember(*found)
		}
		return false
	}
	w.log("%s: %s, to be generation %d", l.name, what, next.Gen)
	l.pending = &write{prev: prev, base: base, next: next, reason: reason}
	return true
}

// change is what an operator, a trainer or a worker asks for.
func (l *leader) change() {
	w := l.w
	if l.pending != nil {
		l.commit()
	}
	version := label(w.rng.IntN(checkpoints))
	switch w.rng.IntN(14) {
	case 0, 1, 2:
		n := w.rng.IntN(checkpoints)
		l.update("register "+label(n), true, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Register(identity(n), label(n), true, s)
		})
	case 3, 4:
		keep := w.one(2)
		l.update("activate "+version, false, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Activate(version, keep, s)
		})
	case 5, 6, 7, 8, 9:
		l.update("purge", false, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Purge(coordinator.AllVersions, s)
		})
	case 10:
		l.update("purge "+version, false, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Purge(version, s)
		})
	case 11:
		l.update("drain "+version, false, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Drain(version, s)
		})
	case 12:
		l.update("revoke "+version, false, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Revoke(version, s)
		})
	case 13:
		return
	}
	if w.one(2) {
		l.commit()
	}
}

// commit writes what is pending, unless somebody was faster.
func (l *leader) commit() {
	p := l.pending
	if p == nil {
		return
	}
	l.pending = nil
	w := l.w
	if l.cut {
		return
	}
	s, err := w.control.swap(p.prev, p.next)
	switch {
	case errors.Is(err, coordinator.ErrConflict):
		w.counts[cConflicts]++
		return
	case err != nil:
		w.check(iEpoch, false, "%s writes an invalid record: %v", l.name, err)
		return
	}
	w.counts[cChanges]++
	if p.reason != "" {
		w.counts[cReasserts]++
	}
	w.log("%s writes generation %d %s", l.name, p.next.Gen, p.reason)
	l.epochs(p)
	l.remember(s)
	w.control.hint(p.next.Gen)
	if d := p.sweep; d != nil {
		w.counts[cSwept]++
	}
}

// epochs checks what was given out.
func (l *leader) epochs(p *write) {
	for v, e := range p.next.Variants {
		was, ok := p.base.Variants[v]
		if e.State.Live() && (!ok || was.Epoch != e.Epoch || was.Act != e.Act) {
			l.w.check(iEpoch, e.Epoch > p.base.LastEpoch && !e.Act.IsZero(), "%s gives epoch %d to %v after %d", l.name, e.Epoch, v, p.base.LastEpoch)
		}
	}
}

func (l *leader) remember(s coordinator.Stored) {
	if l.known == nil || s.Gen > l.known.Gen {
		l.known = &s
	}
}

// reconcile is one round.
func (l *leader) reconcile() {
	w := l.w
	if l.cut {
		return
	}
	l.beats = w.control.living()
	prev, found, err := l.read()
	if err != nil || found == nil && l.known == nil {
		return
	}
	next, reason, err := coordinator.Reconcile(l.known, found, l.beats, w.stamp())
	if err != nil {
		w.check(iEpoch, false, "%s reconciles: %v", l.name, err)
	}
	switch reason {
	case "":
		l.remember(*found)
		return
	case "seen":
		if !l.reseen.IsZero() && w.now.Sub(l.reseen) < 2*lease {
			return
		}
		l.reseen = w.now
	}
	// What reconciliation gives out is checked by coordinator's own tests.
	l.pending = &write{prev: prev, base: coordinator.Record{Variants: next.Variants}, next: next, reason: reason}
	if w.calm || w.one(2) {
		l.commit()
	}
}

// reclaim makes one pass that is due.
func (l *leader) reclaim() {
	w := l.w
	if l.known == nil || l.cut {
		return
	}
	for _, d := range l.known.Dead {
		pass := d.Due(w.now, lease, model, l.beats)
		if pass == 0 {
			continue
		}
		l.checkPass(d)
		n := w.redis.deletePrefix(block.EpochPrefix(d.Variant, d.Epoch))
		w.log("%s reclaims %v:%d, pass %d: %d keys", l.name, d.Variant, d.Epoch, pass, n)
		w.yield()
		if l.pending == nil && l.update("sweep", false, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) { return r.Sweep(d, s) }) {
			l.pending.sweep = &d
			l.checkSweep(d)
			l.commit()
		}
		return
	}
}

// checkPass: the first pass has to wait until all that have a lease on an earlier generation have acted, as far as heartbeats tell, or
// T has passed; the second until T after the first.
func (l *leader) checkPass(d coordinator.Dead) {
	w := l.w
	since := func(ms int64) time.Duration { return time.Duration(w.now.UnixMilli()-ms) * time.Millisecond }
	// A time to come is a damaged record or a clock that was stepped back: garbage must not wait for it.
	long := func(ms int64) bool { return since(ms) >= lease || since(ms) < 0 }
	acted := len(l.beats) > 0
	for _, h := range l.beats {
		acted = acted && (h.Gen >= d.Gen || h.State == coordinator.Unsynced)
	}
	if d.Swept == 0 {
		w.check(iReclaim, acted || long(d.Since), "%s reclaims epoch %d %v after its end, before anybody acknowledged", l.name, d.Epoch, since(d.Since))
	} else {
		w.check(iReclaim, long(d.Swept), "%s reclaims epoch %d again after %v", l.name, d.Epoch, since(d.Swept))
	}
	e := l.known.Variants[d.Variant]
	w.check(iReclaim, !e.State.Live() || e.Epoch != d.Epoch, "%s reclaims epoch %d, which is live", l.name, d.Epoch)
}

// checkSweep: an epoch leaves the list only after the second pass.
func (l *leader) checkSweep(d coordinator.Dead) {
	if !slices.Contains(l.pending.base.Dead, d) {
		return // another was faster, or the record has lost it
	}
	listed := slices.ContainsFunc(l.pending.next.Dead, func(x coordinator.Dead) bool { return x.Variant == d.Variant && x.Epoch == d.Epoch })
	l.w.check(iReclaim, listed == (d.Swept == 0), "%s takes epoch %d off the list after a pass", l.name, d.Epoch)
}

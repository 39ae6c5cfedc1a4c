package coordinator

import (
	"fmt"
	"slices"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// editor builds the next generation of a record. Every transition goes through it, so that the rules about numbers stand in
// one place: the generation grows by one per write, an epoch is given out once, and an epoch that loses its grant becomes dead.
type editor struct {
	before Record
	rec    Record
	act    Act
	ms     int64
	dirty  bool
}

func edit(r Record, s Stamp) *editor {
	ed := &editor{before: r, rec: r.clone(), act: s.Act, ms: millis(s.Now)}
	ed.rec.Gen++
	return ed
}

// done returns the edited record, or the one before if nothing has changed.
func (ed *editor) done() (Record, error) {
	if !ed.dirty {
		return ed.before, nil
	}
	if ed.rec.Gen > MaxNumber || ed.rec.LastEpoch > MaxNumber {
		return ed.before, fmt.Errorf("%w: gen %d, epoch %d of %s", ErrExhausted, ed.rec.Gen, ed.rec.LastEpoch, ed.rec.Model)
	}
	if ed.act.IsZero() { // an activation without a name of its own could be mistaken for another
		return ed.before, fmt.Errorf("%w: Stamp.Act is zero", ErrInvalid)
	}
	return ed.rec, nil
}

func (ed *editor) put(v block.Variant, e Entry) {
	e.Gen = ed.rec.Gen
	ed.rec.Variants[v] = e
	ed.dirty = true
}

// activate makes a variant active under a new epoch.
func (ed *editor) activate(v block.Variant) {
	e := ed.rec.Variants[v]
	ed.kill(v, e.Epoch)
	e.State, e.Since = Active, ed.ms
	e.Epoch, e.Act = ed.nextEpoch(), ed.act
	ed.put(v, e)
}

// renew gives a live variant a new epoch.
func (ed *editor) renew(v block.Variant) {
	e := ed.rec.Variants[v]
	ed.kill(v, e.Epoch)
	e.Since = ed.ms
	e.Epoch, e.Act = ed.nextEpoch(), ed.act
	ed.put(v, e)
}

// retire takes a variant's grant away.
func (ed *editor) retire(v block.Variant, s State) {
	e := ed.rec.Variants[v]
	ed.kill(v, e.Epoch)
	e.State, e.Since, e.Epoch, e.Act = s, ed.ms, 0, Act{}
	ed.put(v, e)
}

// promote makes all variants of weights active, and revokes all other live ones unless keep.
func (ed *editor) promote(weights block.Digest, keep bool) {
	for _, x := range ed.rec.Versions() {
		switch {
		case x.Weights == weights && x.State == Warming: // what was stored for it stays: that is what it was for
			e := x.Entry
			e.State, e.Since = Active, ed.ms
			ed.put(x.Variant, e)
		case x.Weights == weights && x.State != Active:
			ed.activate(x.Variant)
		case x.Weights != weights && x.State.Live() && !keep:
			ed.retire(x.Variant, Revoked)
		}
	}
}

// renewAll gives every live variant a new epoch. Nothing stored before can be reached then, so that purges of tenants are forgotten.
func (ed *editor) renewAll() {
	for _, x := range ed.rec.Versions() {
		if x.State.Live() {
			ed.renew(x.Variant)
		}
	}
	if len(ed.rec.Tenants) > 0 {
		ed.rec.Tenants, ed.dirty = nil, true
	}
}

// cut makes a tenant's entries unreachable. They are not listed for reclaim, since their keys do not show whose they are: they expire, or are
// evicted, as entries that nobody asks for.
func (ed *editor) cut(ns block.Digest) {
	if ed.rec.Tenants == nil {
		ed.rec.Tenants = map[block.Digest]TenantCut{}
	}
	ed.rec.Tenants[ns] = TenantCut{Cut: block.Cut(ed.act), Gen: ed.rec.Gen, Since: ed.ms}
	ed.rec.Cut, ed.rec.CutAt = ed.rec.Gen, ed.ms
	ed.dirty = true
}

// sweep notes a pass over a dead epoch.
func (ed *editor) sweep(d Dead) {
	i := slices.Index(ed.rec.Dead, d)
	switch {
	case i < 0:
		return
	case d.Swept == 0 && !mutation.Is(mutation.EagerReclaim):
		ed.rec.Dead[i].Swept = max(ed.ms, 1)
	default:
		ed.rec.Dead = slices.Delete(ed.rec.Dead, i, i+1)
	}
	ed.dirty = true
}

// nextEpoch follows the clock where it can: then even a record that was lost altogether does not give an epoch out again.
func (ed *editor) nextEpoch() block.Epoch {
	if mutation.Is(mutation.ReuseEpoch) && ed.rec.LastEpoch > 0 {
		return ed.rec.LastEpoch
	}
	ed.rec.LastEpoch = max(ed.rec.LastEpoch+1, block.Epoch(ed.ms))
	return ed.rec.LastEpoch
}

// kill lists an epoch for reclaim. If the list is full the oldest falls out: its entries expire by their own TTL.
func (ed *editor) kill(v block.Variant, e block.Epoch) {
	if e == 0 {
		return
	}
	ed.dirty = true
	ed.rec.Cut, ed.rec.CutAt = ed.rec.Gen, ed.ms
	ed.bury(Dead{Variant: v, Epoch: e, Gen: ed.rec.Gen, Since: ed.ms})
}

func (ed *editor) bury(d Dead) {
	if slices.ContainsFunc(ed.rec.Dead, func(x Dead) bool { return x.Variant == d.Variant && x.Epoch == d.Epoch }) {
		return
	}
	if len(ed.rec.Dead) >= MaxDead {
		ed.rec.Dead = slices.Delete(ed.rec.Dead, 0, len(ed.rec.Dead)-MaxDead+1)
	}
	ed.rec.Dead = append(ed.rec.Dead, d)
}

// makeRoom forgets variants that are not live, revoked ones first and among them the longest unchanged, until one more fits. Forgetting is
// safe: LastEpoch remembers the numbers.
func (ed *editor) makeRoom() bool {
	for len(ed.rec.Variants) >= MaxVariants {
		var victim *Version
		for _, x := range ed.rec.Versions() {
			if x.State.Live() {
				continue
			}
			if victim == nil || x.State == Revoked && victim.State != Revoked || x.State == victim.State && x.Gen < victim.Gen {
				victim = &x
			}
		}
		if victim == nil {
			return false
		}
		delete(ed.rec.Variants, victim.Variant)
		ed.dirty = true
	}
	return true
}

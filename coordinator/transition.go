package coordinator

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Stamp is what a transition takes from the outside world: the moment, and 128 fresh random bits that name what it activates.
type Stamp struct {
	Now time.Time
	Act Act
}

// Registration is what Add makes known.
type Registration struct {
	Identity block.Identity
	Label    string // "" keeps the one before, or takes the first digits of the weights digest
	// Declared says that the weights digest is an operator's word. Once the same digest was computed from bytes, it is not declared
	// any more, whoever registers it again.
	Declared bool
	Activate bool // make the weights active in the same write
	Keep     bool // with Activate: leave other weights active
}

// Register is Add without options.
func (r Record) Register(id block.Identity, label string, auto bool, s Stamp) (Record, error) {
	return r.Add(Registration{Identity: id, Label: label}, auto, s)
}

// Add makes a variant known. It is idempotent; a label other than "" replaces the one before. Weights that are active stay so in
// every layout, so a new layout of theirs becomes active at once. With auto, a model without any live version activates
// this one, unless these weights were revoked: a restart must not undo that.
func (r Record) Add(q Registration, auto bool, s Stamp) (Record, error) {
	id, label := q.Identity, q.Label
	if q.Keep && !q.Activate {
		return r, fmt.Errorf("%w: keep goes with activate only", ErrInvalid)
	}
	if id.Weights.IsZero() || id.Layout.IsZero() {
		return r, fmt.Errorf("%w: weights and layout digests are both needed", ErrInvalid)
	}
	if label != "" {
		if err := ValidateLabel(label); err != nil {
			return r, err
		}
	}
	ed := edit(r, s)
	v := id.Variant()
	e, known := r.Variants[v]
	switch {
	case !known:
		if !ed.makeRoom() {
			return r, fmt.Errorf("%w: %d of %s are live", ErrTooMany, len(r.Variants), r.Model)
		}
		if label == "" {
			label = id.Weights.Short()
		}
		e = Entry{Label: label, Weights: id.Weights, Layout: id.Layout, Declared: q.Declared, State: Registered, Since: ed.ms}
		ed.put(v, e)
	case label != "" && label != e.Label || e.Declared && !q.Declared:
		e.Label, e.Declared = cmp.Or(label, e.Label), e.Declared && q.Declared
		ed.put(v, e)
	}
	if q.Activate {
		ed.promote(id.Weights, q.Keep)
		return ed.done()
	}
	if e.State == Registered {
		var anyLive, sameActive, sameRevoked bool
		for _, x := range r.Variants {
			anyLive = anyLive || x.State.Live()
			sameActive = sameActive || x.Weights == id.Weights && x.State == Active
			sameRevoked = sameRevoked || x.Weights == id.Weights && x.State == Revoked
		}
		if sameActive || auto && !anyLive && !sameRevoked {
			ed.activate(v)
		}
	}
	return ed.done()
}

// Activate makes all variants of the selected weights active, each that was not with a new epoch, and revokes all other live weights
// unless keep says that several may serve at once (canary, rolling upgrade).
func (r Record) Activate(selector string, keep bool, s Stamp) (Record, error) {
	selected, err := r.match(selector)
	if err != nil {
		return r, err
	}
	weights := r.Variants[selected[0]].Weights
	ed := edit(r, s)
	ed.promote(weights, keep)
	return ed.done()
}

// Warm gives the selected variants that are not live an epoch, so that their entries can be stored while others serve. No worker swaps to them;
// activation makes them serve, with the entries stored until then. Weights that were revoked come back only by activation.
func (r Record) Warm(selector string, s Stamp) (Record, error) {
	selected, err := r.match(selector)
	if err != nil {
		return r, err
	}
	ed := edit(r, s)
	for _, v := range selected {
		switch e := r.Variants[v]; e.State {
		case Registered:
			e.State, e.Since = Warming, ed.ms
			e.Epoch, e.Act = ed.nextEpoch(), ed.act
			ed.put(v, e)
		case Revoked:
			return r, fmt.Errorf("%w: %s was revoked: activate it, or warm other weights", ErrInvalid, e.Label)
		}
	}
	return ed.done()
}

// Purge gives every selected live variant a new epoch: all its entries become unreachable at once. The selector "" means the whole model.
func (r Record) Purge(selector string, s Stamp) (Record, error) {
	ed := edit(r, s)
	selected, err := r.matchOrAll(selector)
	if err != nil {
		return r, err
	}
	if selector == AllVersions {
		ed.renewAll()
		return ed.done()
	}
	for _, v := range selected {
		if r.Variants[v].State.Live() {
			ed.renew(v)
		}
	}
	return ed.done()
}

// PurgeTenant makes all entries of one tenant unreachable, in every live variant, and leaves those of the others alone: the tenant's chains
// begin at another root from here on. A record remembers MaxTenants of such purges; one more purges the whole model, after
// which none has to be remembered.
func (r Record) PurgeTenant(ns block.Digest, s Stamp) (Record, error) {
	if ns.IsZero() {
		return r, fmt.Errorf("%w: the tenant's namespace digest is missing", ErrInvalid)
	}
	live := slices.ContainsFunc(r.Versions(), func(v Version) bool { return v.State.Live() })
	if !live {
		return r, nil // nothing can be reached, and whatever becomes live does so under a new epoch
	}
	ed := edit(r, s)
	if _, again := r.Tenants[ns]; !again && len(r.Tenants) >= MaxTenants {
		ed.renewAll()
		return ed.done()
	}
	ed.cut(ns)
	return ed.done()
}

// Drain marks the selected active variants as on their way out; their entries stay usable.
func (r Record) Drain(selector string, s Stamp) (Record, error) {
	selected, err := r.match(selector)
	if err != nil {
		return r, err
	}
	ed := edit(r, s)
	for _, v := range selected {
		if e := r.Variants[v]; e.State == Active {
			e.State, e.Since = Draining, ed.ms
			ed.put(v, e)
		}
	}
	return ed.done()
}

// Revoke takes the selected variants' entries away for good.
func (r Record) Revoke(selector string, s Stamp) (Record, error) {
	selected, err := r.match(selector)
	if err != nil {
		return r, err
	}
	ed := edit(r, s)
	for _, v := range selected {
		if r.Variants[v].State != Revoked {
			ed.retire(v, Revoked)
		}
	}
	return ed.done()
}

// SweepAll is Sweep for several dead epochs in one write.
func (r Record) SweepAll(ds []Dead, s Stamp) (Record, error) {
	ed := edit(r, s)
	for _, d := range ds {
		ed.sweep(d)
	}
	return ed.done()
}

// Sweep notes that the entries of a dead epoch were deleted once more: after the first pass it waits for the second, which takes it off
// the list. An epoch that is listed no more, or has been through this pass already, changes nothing: another coordinator was faster.
func (r Record) Sweep(d Dead, s Stamp) (Record, error) { return r.SweepAll([]Dead{d}, s) }

// match finds the variants that a selector names: a variant in full names itself; a label, or at least 8 leading digits of a
// weights digest, names all variants of those weights. It returns at least one variant, sorted, or an error.
func (r Record) match(selector string) ([]block.Variant, error) {
	if selector == "" {
		return nil, fmt.Errorf("%w: a version is needed: a label, a weights digest or a variant", ErrInvalid)
	}
	if len(selector) > 2*len(block.Digest{}) {
		return nil, fmt.Errorf("%w: version has %d characters", ErrInvalid, len(selector))
	}
	hits := map[block.Digest]bool{}
	exact := false
	for v, e := range r.Variants {
		byName := e.Label == selector || len(selector) >= 8 && strings.HasPrefix(e.Weights.String(), selector)
		if v.String() == selector && !byName {
			exact = true
		}
		if byName || v.String() == selector {
			hits[e.Weights] = true
		}
	}
	switch len(hits) {
	case 0:
		return nil, fmt.Errorf("%w: %s has none called %q", ErrNoVersion, r.Model, selector)
	case 1:
	default:
		var short []string
		for w := range hits {
			short = append(short, w.Short())
		}
		slices.Sort(short)
		return nil, fmt.Errorf("%w: %q names weights %s: use a digest", ErrAmbiguous, selector, strings.Join(short, ", "))
	}
	var vs []block.Variant
	for v, e := range r.Variants {
		if hits[e.Weights] && (!exact || v.String() == selector) {
			vs = append(vs, v)
		}
	}
	slices.SortFunc(vs, func(a, b block.Variant) int { return slices.Compare(a[:], b[:]) })
	return vs, nil
}

func (r Record) matchOrAll(selector string) ([]block.Variant, error) {
	if selector != AllVersions {
		return r.match(selector)
	}
	var vs []block.Variant
	for _, x := range r.Versions() {
		vs = append(vs, x.Variant)
	}
	return vs, nil
}

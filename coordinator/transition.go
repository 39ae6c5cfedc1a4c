package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// Stamp is what a transition takes from the outside world: the moment, and 128 fresh random bits that name what it activates.
type Stamp struct {
	Now time.Time
	Act Act
}

// Register makes a variant known. It is idempotent; a label other than "" replaces the one before. Weights that are active stay so in
// every layout, so a new layout of theirs becomes active at once. With auto, a model without any live version activates
// this one, unless these weights were revoked: a restart must not undo that.
func (r Record) Register(id block.Identity, label string, auto bool, s Stamp) (Record, error) {
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
		e = Entry{Label: label, Weights: id.Weights, Layout: id.Layout, State: Registered, Since: ed.ms}
		ed.put(v, e)
	case label != "" && label != e.Label:
		e.Label = label
		ed.put(v, e)
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
	for _, x := range r.Versions() {
		switch {
		case x.Weights == weights && x.State != Active:
			ed.activate(x.Variant)
		case x.Weights != weights && x.State.Live() && !keep:
			ed.retire(x.Variant, Revoked)
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
	for _, v := range selected {
		if r.Variants[v].State.Live() {
			ed.renew(v)
		}
	}
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

// Sweep notes that the entries of a dead epoch were deleted once more: after the first pass it waits for the second, which takes it off
// the list. An epoch that is listed no more, or has been through this pass already, changes nothing: another coordinator was faster.
func (r Record) Sweep(d Dead, s Stamp) (Record, error) {
	i := slices.Index(r.Dead, d)
	if i < 0 {
		return r, nil
	}
	ed := edit(r, s)
	ed.dirty = true
	if d.Swept == 0 && !mutation.Is(mutation.EagerReclaim) {
		ed.rec.Dead[i].Swept = max(ed.ms, 1)
	} else {
		ed.rec.Dead = slices.Delete(ed.rec.Dead, i, i+1)
	}
	return ed.done()
}

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
	if selector != "" {
		return r.match(selector)
	}
	var vs []block.Variant
	for _, x := range r.Versions() {
		vs = append(vs, x.Variant)
	}
	return vs, nil
}

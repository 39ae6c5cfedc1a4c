package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Salvage makes a record of one that cannot be used and that nobody remembers. Kept is what proves itself: entries whose digests hash to the
// variant they stand under. What was live gets a new epoch, since nobody knows what was purged; what was revoked stays so; anything
// unclear is only registered. Numbers go beyond what the damaged record and living workers say. It is pure.
func Salvage(model string, raw []byte, beats []Heartbeat, s Stamp) (Record, error) {
	r := NewRecord(model)
	var found struct {
		Gen       uint64                     `json:"gen"`
		Term      uint64                     `json:"term"`
		LastEpoch uint64                     `json:"last_epoch"`
		Variants  map[string]json.RawMessage `json:"variants"`
	}
	_ = json.Unmarshal(raw[:min(len(raw), MaxRecordBytes)], &found) // as much as can be read
	// Beyond half of the range it is damage, not a number.
	plausible := func(n uint64) uint64 {
		if n > MaxNumber/2 {
			return 0
		}
		return n
	}
	r.Gen, r.Term, r.LastEpoch = plausible(found.Gen), plausible(found.Term), block.Epoch(plausible(found.LastEpoch))
	for _, h := range beats {
		if h.Model == model {
			r.Gen, r.LastEpoch = max(r.Gen, h.Gen, plausible(h.Refused)), max(r.LastEpoch, h.Epoch)
		}
	}
	ed := edit(r, s)
	ed.dirty = true
	for _, name := range slices.Sorted(maps.Keys(found.Variants)) {
		var v block.Variant
		var e Entry
		if v.UnmarshalText([]byte(name)) != nil || json.Unmarshal(found.Variants[name], &e) != nil ||
			e.Weights.IsZero() || e.Layout.IsZero() || e.Identity().Variant() != v || len(ed.rec.Variants) >= MaxVariants {
			continue
		}
		live := e.State.Live()
		if ValidateLabel(e.Label) != nil {
			e.Label = e.Weights.Short()
		}
		if !live && e.State != Revoked {
			e.State = Registered
		}
		e.Epoch, e.Act, e.Since = 0, Act{}, ed.ms
		if live {
			e.Epoch, e.Act = ed.nextEpoch(), ed.act
		}
		ed.put(v, e)
	}
	ed.rec.Cut, ed.rec.CutAt = ed.rec.Gen, ed.ms
	return ed.done()
}

// Repair replaces a record that cannot be read, and that this coordinator does not remember either, by what can be saved of it; see Salvage. It
// is an operator's decision, because what is not saved is forgotten: revocations among it, if their entries are damaged. Workers register
// again what they have and the record lacks. A record that is good, or that somebody remembers, is left alone (ErrInvalid).
func (c *Coordinator) Repair(ctx context.Context, model string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := ValidateModel(model); err != nil {
		return Result{}, err
	}
	beats, err := c.opt.Control.Workers(ctx)
	if err != nil {
		return Result{}, err
	}
	known := c.remembered(model)
	prev, err := c.opt.Control.Load(ctx, model)
	switch {
	case err == nil:
		return Result{}, fmt.Errorf("%w: the record of %s is not damaged", ErrInvalid, model)
	case !errors.Is(err, ErrRecord):
		return Result{}, err
	case known != nil:
		return Result{}, fmt.Errorf("%w: the record of %s is remembered and will be written again as it was", ErrInvalid, model)
	}
	next, err := Salvage(model, prev.raw, beats, Stamp{Now: c.opt.Now(), Act: c.opt.NewAct()})
	if err != nil {
		return Result{}, err
	}
	stored, err := c.write(ctx, prev, next, writing{change: &Change{What: changeRepair, Who: actorOf(ctx)}})
	if err != nil {
		return Result{}, err
	}
	c.metrics.transitions.WithLabelValues(changeRepair).Inc()
	c.opt.Logger.Warn("record repaired", "model", model, "gen", stored.Gen, "variants", len(stored.Variants), "at", time.UnixMilli(stored.CutAt))
	return Result{Model: model, Gen: stored.Gen, Changed: true, Versions: stored.Versions()}, nil
}

package coordinator

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// proposal is a change of one model's record.
type proposal struct {
	what    string // for history, log and metrics; "" leaves no trace there
	version string // what it is about, as the caller said it
	model   string
	create  bool // the model may be new
	leader  bool // only the leader may do it
	fn      func(Record, Stamp) (Record, error)
}

// change carries out a proposal for a caller.
func (c *Coordinator) change(ctx context.Context, p proposal) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	stored, changed, err := c.update(ctx, p)
	if err != nil {
		return Result{}, err
	}
	if changed {
		c.metrics.transitions.WithLabelValues(p.what).Inc()
		c.opt.Logger.Info("record changed", "model", p.model, "change", p.what, "gen", stored.Gen, "request_id", httpapi.RequestIDOf(ctx))
	}
	return Result{Model: p.model, Gen: stored.Gen, Changed: changed, Versions: stored.Versions()}, nil
}

// update applies p to a model's record, by compare-and-set until it holds. What Redis has lost of what this coordinator remembers is put
// back in the same write, so that no change is ever built on a record that went backwards.
func (c *Coordinator) update(ctx context.Context, p proposal) (Stored, bool, error) {
	if err := ValidateModel(p.model); err != nil {
		return Stored{}, false, err
	}
	for try := 1; ; try++ {
		stored, changed, err := c.tryUpdate(ctx, p)
		if !errors.Is(err, ErrConflict) || try == maxTries {
			return stored, changed, err
		}
		c.metrics.conflicts.Inc()
		sleep(ctx, mathrand.N(time.Duration(try)*2*time.Millisecond))
	}
}

func (c *Coordinator) tryUpdate(ctx context.Context, p proposal) (Stored, bool, error) {
	// What is remembered is looked up before Redis is read: had another request of ours written in between, its write would
	// look like one that Redis has lost.
	known := c.remembered(p.model)
	prev, found, err := c.load(ctx, p.model, known)
	if err != nil {
		return Stored{}, false, err
	}
	if found == nil && known == nil && len(prev.raw) > 0 {
		return Stored{}, false, fmt.Errorf("%w: %s cannot be read and this coordinator remembers none: kvtier model repair %s writes what is left of it",
			ErrRecord, recordPrefix+p.model, p.model)
	}
	stamp := Stamp{Now: c.opt.Now(), Act: c.opt.NewAct()}
	base, reason, err := Reconcile(known, found, nil, stamp)
	if err != nil {
		return Stored{}, false, err
	}
	if base.V == 0 {
		if !p.create {
			return Stored{}, false, fmt.Errorf("%w: %s", ErrNoModel, p.model)
		}
		base = NewRecord(p.model)
	}
	next, err := p.fn(base, stamp)
	if err != nil {
		return Stored{}, false, err
	}
	if reason == reasonNone && next.Gen == base.Gen {
		if found == nil {
			return Stored{}, false, fmt.Errorf("%w: %s", ErrNoModel, p.model)
		}
		c.remember(*found)
		return *found, false, nil
	}
	var change *Change
	if p.what != "" && next.Gen != base.Gen {
		change = &Change{What: p.what, Version: p.version, Who: actorOf(ctx)}
	}
	stored, err := c.write(ctx, prev, next, writing{reason: reason, leader: p.leader, change: change})
	return stored, err == nil && next.Gen != base.Gen, err
}

// load reads a record; a missing or damaged one is nil, and prev is what a write has to replace.
func (c *Coordinator) load(ctx context.Context, model string, known *Stored) (prev Stored, found *Stored, err error) {
	prev, err = c.opt.Control.load(ctx, model, known)
	switch {
	case err == nil:
		return prev, &prev, nil
	case errors.Is(err, ErrNoModel), errors.Is(err, ErrRecord):
		return prev, nil, nil
	}
	return prev, nil, err
}

// writing says under which circumstances a record is written.
type writing struct {
	reason string  // why it has to be written again, "" if that is not it
	leader bool    // only the leader may write it
	change *Change // for the history, nil for none
}

// write replaces prev by next and tells the workers. The record carries the highest term that ever wrote it: whoever answers a request keeps
// it, a leader puts its own there, and a leader whose term is below has been deposed without noticing.
func (c *Coordinator) write(ctx context.Context, prev Stored, next Record, w writing) (Stored, error) {
	fence := ""
	switch l, leads := c.leading(); {
	case leads && l.term >= next.Term:
		next.Term = l.term
		if w.leader {
			fence = l.fence()
		}
	case leads:
		c.deposed(next.Term)
		fallthrough
	default:
		if w.leader {
			return Stored{}, fmt.Errorf("%w (model %s)", ErrDeposed, next.Model)
		}
	}
	if w.change == nil && w.reason != reasonNone {
		w.change = &Change{What: changeReassert, Version: w.reason, Who: whoReconciled}
	}
	if w.change != nil {
		w.change.At, w.change.Gen, w.change.Term, w.change.Via = millis(c.opt.Now()), next.Gen, next.Term, c.opt.Owner
	}
	raw, err := next.Encode()
	if err != nil {
		return Stored{}, err
	}
	stored, err := c.swap(ctx, prev, Stored{Record: next, raw: raw}, fence, w.change)
	if errors.Is(err, ErrDeposed) {
		c.deposed(0)
	}
	if err != nil {
		return Stored{}, err
	}
	c.remember(stored)
	if w.reason != reasonNone {
		c.metrics.reasserts.WithLabelValues(w.reason).Inc()
		c.opt.Logger.Warn("record written again", "model", next.Model, "reason", w.reason, "gen", next.Gen, "before", prev.Gen)
	}
	// Workers poll anyway, so a lost hint is not the caller's concern; and it must not be lost because the caller went away.
	hint, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if err := c.opt.Control.Hint(hint, next.Model, next.Gen); err != nil {
		c.metrics.hintErrors.Inc()
	}
	return stored, nil
}

// swap writes the file of desired state, then Redis, and puts the file right if Redis says no.
func (c *Coordinator) swap(ctx context.Context, prev, next Stored, fence string, change *Change) (Stored, error) {
	if c.state == nil {
		return c.opt.Control.swap(ctx, prev, next, fence, change)
	}
	if err := c.state.intend(next.Model, next.raw); err != nil {
		return Stored{}, err
	}
	stored, err := c.opt.Control.swap(ctx, prev, next, fence, change)
	switch {
	case err == nil:
		return stored, c.state.settle(next.Model, next.raw, next.raw)
	case errors.Is(err, ErrConflict), errors.Is(err, ErrDeposed):
		return Stored{}, errors.Join(err, c.state.settle(next.Model, next.raw, nil))
	}
	// Whether Redis has it is not known. The intention stays in the file until a round has seen what Redis holds.
	c.state.doubt(next.Model, next.raw)
	return Stored{}, err
}

func (c *Coordinator) remembered(model string) *Stored {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.known[model]; ok {
		return &s
	}
	return nil
}

// remember keeps s unless a later one is remembered already: requests run side by side.
func (c *Coordinator) remember(s Stored) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.known[s.Model]; !ok || s.Gen > old.Gen {
		c.known[s.Model] = s
	}
}

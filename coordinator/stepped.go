package coordinator

import (
	"time"

	"github.com/kvtier/kvtier/internal/mutation"
)

// Stepped is the pure half of a [Watch]: what it knows, and what a poll's reply makes of that. It has no goroutine, no socket and
// no clock, so that a simulation can run many of them in virtual time. It is not safe for concurrent use.
type Stepped struct {
	snap  *snapshot
	lease time.Duration
}

// NewStepped returns an unsynced one.
func NewStepped(model string, lease time.Duration) *Stepped {
	return &Stepped{snap: &snapshot{view: View{Model: model, State: Unsynced}}, lease: lease}
}

// Reply takes in what a poll that began at from has found, or its error, at now. It reports whether another generation was
// adopted, and why the reply was refused.
func (w *Stepped) Reply(found Stored, err error, from, now time.Time) (changed bool, _ error) {
	if mutation.Is(mutation.LeaseFromReply) {
		from = now
	}
	prev := w.snap
	next := prev
	if err == nil {
		next, err = prev.adopt(found, from, w.lease)
	}
	if err != nil {
		same := *prev
		same.refused, same.view.Problem = found.Gen, err.Error()
		w.snap = &same
		return false, err
	}
	w.snap = next
	return next.view.Gen != prev.view.Gen, nil
}

// View returns what is known at now.
func (w *Stepped) View(now time.Time) View {
	v := w.snap.view
	v.State = w.snap.stateAt(now, w.lease)
	return v
}

// Heartbeat is what the watch would report at now, in the name of incarnation.
func (w *Stepped) Heartbeat(incarnation string, now time.Time) Heartbeat {
	v := w.View(now)
	return Heartbeat{
		Incarnation: incarnation, Model: v.Model, Gen: v.Gen, Sum: v.Sum, Epoch: w.snap.topEpoch,
		Refused: w.snap.refused, State: v.State, Problem: v.Problem,
	}
}

// NewStored encodes r as Redis would hold it.
func NewStored(r Record) (Stored, error) {
	raw, err := r.Encode()
	return Stored{Record: r, raw: raw}, err
}

// ReadStored decodes what Redis holds, as [Control.Load] does.
func ReadStored(model string, raw []byte) (Stored, error) {
	r, err := DecodeRecord(model, raw)
	if err != nil {
		return Stored{raw: raw}, err
	}
	return Stored{Record: r, raw: raw}, nil
}

// Raw is the stored form. It must not be changed.
func (s Stored) Raw() []byte { return s.raw }

// Due reports which pass over d may run at now, given what workers have reported: 0 for none, 1 or 2.
func (d Dead) Due(now time.Time, lease time.Duration, model string, beats []Heartbeat) int {
	return d.due(now, lease, model, beats)
}

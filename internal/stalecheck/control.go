package stalecheck

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"github.com/kvtier/kvtier/coordinator"
)

// control is the Redis of control records: one record, heartbeats, hints.
type control struct {
	w     *world
	raw   []byte             // nil if there is none
	last  coordinator.Stored // raw, decoded
	err   error
	old   []coordinator.Stored // what the record was
	beats map[string]heard
	hints []uint64
}

type heard struct {
	beat coordinator.Heartbeat
	at   time.Time
}

func newControl(w *world) *control { return &control{w: w, beats: map[string]heard{}} }

// load reads the record as coordinator.Control.Load does. Decoding is repeated only when the bytes have changed.
func (c *control) load() (coordinator.Stored, error) {
	if c.raw == nil {
		return coordinator.Stored{}, coordinator.ErrNoModel
	}
	if !bytes.Equal(c.last.Raw(), c.raw) {
		c.last, c.err = coordinator.ReadStored(model, c.raw)
	}
	return c.last, c.err
}

// swap is the compare-and-set.
func (c *control) swap(prev coordinator.Stored, next coordinator.Record) (coordinator.Stored, error) {
	if !bytes.Equal(prev.Raw(), c.raw) {
		return coordinator.Stored{}, coordinator.ErrConflict
	}
	s, err := coordinator.NewStored(next)
	if err != nil {
		return s, err
	}
	c.put(s.Raw())
	if c.w.calm || c.w.one(16) {
		return c.load() // now and then the bytes, at other times what they were made from: decoding takes longer than all the rest
	}
	c.last, c.err = s, nil
	return s, nil
}

func (c *control) put(raw []byte) {
	if c.raw != nil && c.err == nil && len(c.last.Raw()) > 0 {
		c.old = append(c.old, c.last)
		if len(c.old) > 12 {
			c.old = c.old[1:]
		}
	}
	c.raw = raw
}

func (c *control) beat(h coordinator.Heartbeat) { c.beats[h.Incarnation] = heard{h, c.w.now} }

// living returns the heartbeats that have not expired, in a fixed order.
func (c *control) living() []coordinator.Heartbeat {
	var all []coordinator.Heartbeat
	for _, name := range slices.Sorted(maps.Keys(c.beats)) {
		if h := c.beats[name]; c.w.now.Sub(h.at) < coordinator.HeartbeatTTL {
			all = append(all, h.beat)
		} else {
			delete(c.beats, name)
		}
	}
	return all
}

func (c *control) hint(gen uint64) {
	c.hints = append(c.hints, gen)
	if len(c.hints) > 16 {
		c.hints = c.hints[1:]
	}
}

// deliverHint brings one hint, in any order, to some members; it may be lost, or come again.
func (w *world) deliverHint() {
	c := w.control
	if len(c.hints) == 0 {
		return
	}
	i := w.rng.IntN(len(c.hints))
	gen := c.hints[i]
	if w.without&faultHints != 0 || !w.one(4) {
		c.hints = slices.Delete(c.hints, i, i+1)
	}
	if w.without&faultHints == 0 && w.one(5) {
		return
	}
	for _, m := range w.members {
		if !m.cutControl && gen > m.watch.View(w.now).Gen && m.asking == nil && !w.one(4) {
			m.poll()
		}
	}
}

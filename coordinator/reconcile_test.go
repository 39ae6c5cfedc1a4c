package coordinator

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is Redis, coordinators and workers as pure state, for one model.
type world struct {
	t     *rapid.T
	acts  acts
	now   time.Time
	redis *Stored
	past  []*Stored // what a failover or a restored backup can bring back
	known []*Stored // of each coordinator, nil after a restart
	work  []*snapshot
	died  []map[[2]any]bool // by worker: grants that it has seen end
}

func (w *world) stamp() Stamp { return w.acts.at(w.now) }

// coordinate runs one compare-and-set of a coordinator; nothing comes in between, since conflicts change nothing.
func (w *world) coordinate(i int, beats []Heartbeat, fn func(Record, Stamp) (Record, error)) {
	s := w.stamp()
	base, reason, err := Reconcile(w.known[i], w.redis, beats, s)
	if err != nil {
		w.t.Fatalf("reconcile: %v", err)
	}
	if base.V == 0 {
		base = NewRecord("m")
	}
	next, err := fn(base, s)
	if err != nil || next.Gen == 0 {
		return
	}
	if reason == reasonNone && next.Gen == base.Gen {
		w.known[i] = w.redis
		return
	}
	st := stored(w.t, next)
	if w.redis != nil && st.Gen <= w.redis.Gen {
		w.t.Fatalf("generation went from %d to %d", w.redis.Gen, st.Gen)
	}
	w.redis, w.known[i] = &st, &st
	w.past = append(w.past, &st)
}

func (w *world) poll(i int) bool {
	if w.redis == nil {
		return false
	}
	old := w.work[i]
	next, err := old.adopt(*w.redis, w.now, DefaultLease)
	if err != nil {
		refused := *old
		refused.refused = w.redis.Gen
		w.work[i] = &refused
		return false
	}
	if next.view.Gen < old.view.Gen {
		w.t.Fatalf("worker went from generation %d to %d", old.view.Gen, next.view.Gen)
	}
	for _, v := range old.view.versions {
		before, ok := old.view.Grant(v.Variant)
		after, _ := next.view.Grant(v.Variant)
		if ok && before != after {
			w.died[i][[2]any{v.Variant, before}] = true
		}
	}
	for _, v := range next.view.versions {
		if g, ok := next.view.Grant(v.Variant); ok && w.died[i][[2]any{v.Variant, g}] {
			w.t.Fatalf("worker %d adopted %v of %s again, in generation %d", i, g, v.Label, next.view.Gen)
		}
	}
	w.work[i] = next
	return true
}

func (w *world) beats() []Heartbeat {
	var hs []Heartbeat
	for i, s := range w.work {
		hs = append(hs, Heartbeat{
			Incarnation: string(rune('a' + i)), Model: "m", Gen: s.view.Gen, Sum: s.view.Sum, Epoch: s.topEpoch, Refused: s.refused, State: Leased,
		})
	}
	return hs
}

// TestWorldProperty lets Redis flush, go back and come back, coordinators restart and write side by side, and clocks step. No worker ever
// adopts a grant that it has seen end, and once the faults stop, everybody agrees within a few rounds.
func TestWorldProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, now: start, known: make([]*Stored, 3), work: make([]*snapshot, 3)}
		for i := range w.work {
			w.work[i] = &snapshot{view: View{Model: "m"}, changed: make(chan struct{})}
			w.died = append(w.died, map[[2]any]bool{})
		}
		pick := func(t *rapid.T, n int) int { return rapid.IntRange(0, n-1).Draw(t, "i") }
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(-3, 50).Draw(t, "ms")) * time.Millisecond)
				id := identity(rapid.ByteRange(1, 3).Draw(t, "weights"), rapid.ByteRange(1, 2).Draw(t, "layout"))
				kind := rapid.SampledFrom([]string{"register", "activate", "keep", "purge", "drain", "revoke", "sweep"}).Draw(t, "kind")
				w.coordinate(pick(t, 3), nil, func(r Record, s Stamp) (Record, error) {
					switch kind {
					case "register":
						return r.Register(id, "", true, s)
					case "activate":
						return r.Activate(id.Weights.String(), false, s)
					case "keep":
						return r.Activate(id.Weights.String(), true, s)
					case "drain":
						return r.Drain(id.Weights.String(), s)
					case "revoke":
						return r.Revoke(id.Weights.String(), s)
					case "sweep":
						if len(r.Dead) > 0 {
							return r.Sweep(r.Dead[0], s)
						}
						return r, nil
					}
					return r.Purge(AllVersions, s)
				})
			},
			"reconcile": func(t *rapid.T) {
				w.coordinate(pick(t, 3), w.beats(), func(r Record, _ Stamp) (Record, error) { return r, nil })
			},
			"poll":    func(t *rapid.T) { w.poll(pick(t, 3)) },
			"flush":   func(*rapid.T) { w.redis = nil },
			"restart": func(t *rapid.T) { w.known[pick(t, 3)] = nil },
			"go back": func(t *rapid.T) {
				if len(w.past) > 0 {
					w.redis = w.past[max(0, len(w.past)-1-rapid.IntRange(0, 6).Draw(t, "writes"))]
				}
			},
			"": func(*rapid.T) {},
		})
		// The faults stop.
		for range 6 {
			for i := range w.known {
				w.coordinate(i, w.beats(), func(r Record, _ Stamp) (Record, error) { return r, nil })
			}
			for i := range w.work {
				w.poll(i)
			}
		}
		if w.redis == nil {
			return // nobody remembered anything
		}
		for i := range w.work {
			if !w.poll(i) || w.work[i].view.Sum != w.redis.Sum() {
				t.Fatalf("worker %d stays at generation %d while Redis has %d", i, w.work[i].view.Gen, w.redis.Gen)
			}
		}
	})
}

// TestReconcile goes through the cases one by one.
func TestReconcile(t *testing.T) {
	a := &acts{}
	one := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	two := must(t)(one.Register(identity(2, 1), "v2", true, a.at(start)))
	three := must(t)(two.Activate("v2", false, a.at(start.Add(time.Second))))
	old, mid, last := stored(t, one), stored(t, two), stored(t, three)
	fork := stored(t, must(t)(two.Register(identity(3, 1), "v3", true, a.at(start.Add(2*time.Second)))))
	overtaken := stored(t, must(t)(fork.Activate("v3", true, a.at(start.Add(3*time.Second)))))
	v1, v2, v3 := identity(1, 1).Variant(), identity(2, 1).Variant(), identity(3, 1).Variant()
	later := start.Add(time.Minute)

	for _, tt := range []struct {
		name         string
		known, found *Stored
		beats        []Heartbeat
		reason       string
		gen          uint64
		v1, v2       State
		sameEpoch    bool // v2's epoch of generation 3 is kept
	}{
		{name: "nothing anywhere"},
		{name: "first sight", found: &last, gen: 3, v1: Revoked, v2: Active, sameEpoch: true},
		{name: "unchanged", known: &last, found: &last, gen: 3, v1: Revoked, v2: Active, sameEpoch: true},
		{name: "another coordinator went on", known: &old, found: &last, gen: 3, v1: Revoked, v2: Active, sameEpoch: true},
		{name: "flushed", known: &last, reason: reasonLost, gen: 4, v1: Revoked, v2: Active, sameEpoch: true},
		{name: "went back", known: &last, found: &mid, reason: reasonRollback, gen: 4, v1: Revoked, v2: Active},
		{name: "forked", known: &last, found: &fork, reason: reasonRollback, gen: 4, v1: Revoked, v2: Active},
		{
			name: "forked, and the other side has written more", known: &last, found: &overtaken,
			reason: reasonRollback, gen: 5, v1: Revoked, v2: Active,
		},
		{
			name: "went back, nobody remembers, workers do", found: &mid,
			beats:  []Heartbeat{{Model: "m", Gen: 3, Sum: last.Sum(), Epoch: last.LastEpoch}},
			reason: reasonSeen, gen: 4, v1: Active, v2: Registered,
		},
		{
			name: "a worker that is behind is no evidence", found: &last, known: &last,
			beats: []Heartbeat{{Model: "m", Gen: 2, Sum: mid.Sum(), Epoch: mid.LastEpoch}},
			gen:   3, v1: Revoked, v2: Active, sameEpoch: true,
		},
		{
			name: "workers of other models are none either", found: &mid,
			beats: []Heartbeat{{Model: "n", Gen: 9, Epoch: 1 << 50}},
			gen:   2, v1: Active, v2: Registered,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, reason, err := Reconcile(tt.known, tt.found, tt.beats, a.at(later))
			if err != nil || reason != tt.reason || got.Gen != tt.gen {
				t.Fatalf("got generation %d, %q, %v; want %d, %q", got.Gen, reason, err, tt.gen, tt.reason)
			}
			if tt.gen == 0 {
				return
			}
			stored(t, got)
			if got.Variants[v1].State != tt.v1 || got.Variants[v2].State != tt.v2 {
				t.Errorf("got %s", brief(got))
			}
			if same := got.Variants[v2].Epoch == last.Variants[v2].Epoch; tt.v2 == Active && same != tt.sameEpoch {
				t.Errorf("epoch of v2 kept: %v, want %v", same, tt.sameEpoch)
			}
			if tt.reason == reasonSeen && got.Variants[v1].Epoch == mid.Variants[v1].Epoch {
				t.Error("entries that may have been revoked are reachable again")
			}
			if tt.known == &last && (tt.found == &fork && got.Variants[v3].State != Registered ||
				tt.found == &overtaken && got.Variants[v3].State != Active) {
				t.Errorf("the other side's write is lost: %s", brief(got))
			}
			// What a worker at the lost generation sees next.
			s := &snapshot{view: View{Model: "m"}, changed: make(chan struct{})}
			s, err = s.adopt(last, later, DefaultLease)
			if err == nil && tt.reason != reasonNone {
				_, err = s.adopt(stored(t, got), later, DefaultLease)
			}
			if err != nil {
				t.Errorf("a worker that has seen generation 3 refuses the result: %v", err)
			}
		})
	}
	if !slices.ContainsFunc(mustReconcile(t, &last, &mid, a.at(later)).Dead, func(d Dead) bool { return d.Epoch == mid.Variants[v1].Epoch }) {
		t.Error("the revoked epoch is not going to be reclaimed")
	}
}

func mustReconcile(t *testing.T, known, found *Stored, s Stamp) Record {
	t.Helper()
	r, _, err := Reconcile(known, found, nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRevivedActivationIsRefused: Redis went back to before a revocation, and coordinators without memory wrote on from there, past the
// generation that the worker has seen. The worker refuses what comes back, says so, and the coordinator cuts the entries off.
func TestRevivedActivationIsRefused(t *testing.T) {
	a := &acts{}
	one := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	revoked := stored(t, must(t)(one.Revoke("v1", a.at(start))))
	revived := one
	for n := range byte(3) {
		revived = must(t)(revived.Register(identity(2+n, 1), "", true, a.at(start)))
	}
	found := stored(t, revived)
	s := &snapshot{view: View{Model: "m"}, changed: make(chan struct{})}
	s, err := s.adopt(revoked, start, DefaultLease)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.adopt(found, start, DefaultLease); err == nil {
		t.Fatal("a revoked activation was adopted in a later generation")
	}
	beat := Heartbeat{Model: "m", Gen: s.view.Gen, Sum: s.view.Sum, Epoch: s.topEpoch, Refused: found.Gen, State: Leased}
	for who, known := range map[string]*Stored{"one without memory": nil, "one that wrote it": &found} {
		next, reason, err := Reconcile(known, &found, []Heartbeat{beat}, a.at(start.Add(time.Second)))
		if err != nil || reason != reasonSeen {
			t.Fatalf("%s: %q, %v", who, reason, err)
		}
		if _, err := s.adopt(stored(t, next), start, DefaultLease); err != nil {
			t.Errorf("%s: the worker refuses the remedy: %v", who, err)
		}
	}
}

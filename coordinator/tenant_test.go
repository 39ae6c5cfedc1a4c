package coordinator

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
)

func tenant(n int) (ns block.Digest) {
	binary.BigEndian.PutUint32(ns[:], uint32(n+1))
	return ns
}

// TestPurgesOfTenantsAreBounded: as many as fit are remembered; one more purges the model and forgets them.
func TestPurgesOfTenantsAreBounded(t *testing.T) {
	a := &acts{}
	r := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	v := identity(1, 1).Variant()
	for n := range MaxTenants {
		r = must(t)(r.PurgeTenant(tenant(n), a.at(start)))
	}
	r = must(t)(r.PurgeTenant(tenant(3), a.at(start))) // again
	stored(t, r)
	if len(r.Tenants) != MaxTenants || r.Cut != r.Gen || r.Variants[v].Epoch == 0 {
		t.Fatalf("%d tenants at generation %d", len(r.Tenants), r.Gen)
	}
	folded := must(t)(r.PurgeTenant(tenant(MaxTenants), a.at(start)))
	stored(t, folded)
	if len(folded.Tenants) != 0 || folded.Variants[v].Epoch <= r.Variants[v].Epoch || len(folded.Dead) != 1 {
		t.Errorf("one more: %d tenants, epoch %d after %d", len(folded.Tenants), folded.Variants[v].Epoch, r.Variants[v].Epoch)
	}
	if cold := must(t)(must(t)(r.Revoke("v1", a.at(start))).PurgeTenant(tenant(99), a.at(start))); len(cold.Tenants) != MaxTenants {
		t.Error("a purge was noted although nothing is live")
	}
	if _, err := r.PurgeTenant(block.Digest{}, a.at(start)); !errors.Is(err, ErrInvalid) {
		t.Errorf("purge of nobody: %v", err)
	}
	if one := must(t)(r.Purge("v1", a.at(start))); len(one.Tenants) != MaxTenants {
		t.Error("purge of a version forgot the tenants' purges")
	}
}

// TestPurgesOfTenantsAreNotLost goes through what Redis may forget or bring back.
func TestPurgesOfTenantsAreNotLost(t *testing.T) {
	a := &acts{}
	later := start.Add(time.Minute)
	one := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	purged := must(t)(one.PurgeTenant(tenant(1), a.at(start)))
	other := must(t)(one.PurgeTenant(tenant(2), a.at(start)))
	again := must(t)(one.PurgeTenant(tenant(1), a.at(start)))
	beyond := must(t)(must(t)(one.Register(identity(2, 1), "", true, a.at(start))).Register(identity(3, 1), "", true, a.at(start)))
	whole := must(t)(must(t)(purged.Purge(AllVersions, a.at(start))).Register(identity(2, 1), "", true, a.at(start)))
	known, cut := stored(t, purged), purged.Tenants[tenant(1)]
	for name, tt := range map[string]struct {
		found  *Record
		reason string
		check  func(Record) bool
	}{
		"flushed":                {nil, reasonLost, func(r Record) bool { return r.Tenants[tenant(1)] == cut }},
		"went back":              {&one, reasonRollback, func(r Record) bool { return r.Tenants[tenant(1)] == cut }},
		"went back and wrote on": {&beyond, reasonRollback, func(r Record) bool { return r.Tenants[tenant(1)] == cut && len(r.Variants) == 3 }},
		"forked, another tenant": {&other, reasonRollback, func(r Record) bool { return r.Tenants[tenant(1)] == cut && len(r.Tenants) == 2 }},
		"forked, the same tenant": {&again, reasonRollback, func(r Record) bool {
			c := r.Tenants[tenant(1)].Cut
			return c != cut.Cut && c != again.Tenants[tenant(1)].Cut
		}},
		"the whole model was purged": {&whole, reasonNone, func(r Record) bool { return len(r.Tenants) == 0 }},
	} {
		var found *Stored
		if tt.found != nil {
			s := stored(t, *tt.found)
			found = &s
		}
		got, reason, err := Reconcile(&known, found, nil, a.at(later))
		if err != nil || reason != tt.reason || !tt.check(got) {
			t.Errorf("%s: %q, %v: tenants %v", name, reason, err, got.Tenants)
		}
		// A worker that has acted on the purge: never adopts what undoes it, always the remedy.
		s := &snapshot{view: View{Model: "m"}, changed: make(chan struct{})}
		if s, err = s.adopt(known, later, DefaultLease); err != nil || s.view.Cuts()[tenant(1)] != cut.Cut {
			t.Fatal(s.view.Cuts(), err)
		}
		if found != nil {
			if _, err := s.adopt(*found, later, DefaultLease); (err != nil) != (tt.reason != reasonNone) {
				t.Errorf("%s: the worker says %v to what stands there", name, err)
			}
		}
		if _, err := s.adopt(stored(t, got), later, DefaultLease); err != nil {
			t.Errorf("%s: the worker refuses the remedy: %v", name, err)
		}
	}
}

func TestSalvage(t *testing.T) {
	a := &acts{}
	r := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	r = must(t)(r.Register(identity(2, 1), "v2", true, a.at(start)))
	r = must(t)(r.Activate("v2", false, a.at(start)))
	r = must(t)(r.Register(identity(3, 1), "v3", true, a.at(start)))
	good := string(stored(t, r).raw)
	v1, v2, v3 := identity(1, 1).Variant(), identity(2, 1).Variant(), identity(3, 1).Variant()
	beats := []Heartbeat{{Model: "m", Gen: 70, Epoch: 90}, {Model: "n", Gen: 900}}
	for name, tt := range map[string]struct {
		raw  string
		want int
	}{
		"nothing":             {"", 0},
		"no JSON":             {"{" + good, 0},
		"of the next release": {`{"new":1,` + good[1:], 3},
		"one entry damaged":   {replaceOnce(good, identity(3, 1).Weights.String(), identity(4, 1).Weights.String()), 2},
		"absurd numbers":      {replaceOnce(good, `"gen":4`, `"gen":18446744073709551615`), 3},
	} {
		got, err := Salvage("m", []byte(tt.raw), beats, a.at(start.Add(time.Hour)))
		if err != nil || got.Gen != 71 || len(got.Variants) != tt.want {
			t.Errorf("%s: %d variants at generation %d, %v", name, len(got.Variants), got.Gen, err)
			continue
		}
		stored(t, got)
		if tt.want == 0 {
			continue
		}
		if got.Variants[v1].State != Revoked || got.Variants[v2].State != Active || got.Variants[v2].Epoch <= r.Variants[v2].Epoch {
			t.Errorf("%s: %s", name, brief(got))
		}
		if tt.want == 3 && got.Variants[v3].State != Registered {
			t.Errorf("%s: %s", name, brief(got))
		}
	}
}

func replaceOnce(s, old, with string) string {
	for i := 0; i+len(old) <= len(s); i++ {
		if s[i:i+len(old)] == old {
			return s[:i] + with + s[i+len(old):]
		}
	}
	panic("not there: " + old)
}

func TestDeclaredWeights(t *testing.T) {
	a := &acts{}
	q := Registration{Identity: block.Identity{Weights: DeclaredWeights("of tuesday"), Layout: identity(1, 1).Layout}, Declared: true}
	v := q.Identity.Variant()
	r := must(t)(NewRecord("m").Add(q, true, a.at(start)))
	if !r.Variants[v].Declared || !stored(t, r).Variants[v].Declared {
		t.Error("not marked")
	}
	q.Declared = false
	if r = must(t)(r.Add(q, true, a.at(start))); r.Variants[v].Declared {
		t.Error("still declared after the digest was computed from bytes")
	}
	q.Declared = true
	if again := must(t)(r.Add(q, true, a.at(start))); again.Variants[v].Declared || again.Gen != r.Gen {
		t.Error("declared again although the bytes are known")
	}
}

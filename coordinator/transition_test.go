package coordinator

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
)

// brief shows a record in one line: generation, then every variant as label=state@epoch (epochs counted from the start of the
// scenario in ms), then the dead.
func brief(r Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", r.Gen)
	for _, v := range r.Versions() {
		fmt.Fprintf(&b, " %s=%s", v.Label, v.State)
		if v.Epoch != 0 {
			fmt.Fprintf(&b, "@%d", int64(v.Epoch)-start.UnixMilli())
		}
	}
	for _, d := range r.Dead {
		fmt.Fprintf(&b, " †%d", int64(d.Epoch)-start.UnixMilli())
		if d.Swept != 0 {
			b.WriteString("'")
		}
	}
	return b.String()
}

// TestScenarios plays transcripts: a command per line, what the record says then after "->". Time goes on by 10 ms per line.
func TestScenarios(t *testing.T) {
	for name, script := range map[string]string{
		"first version serves at once": `
			register 1 v1 -> 1: v1=active@0
			register 1 v1 -> 1: v1=active@0
			register 2 v2 -> 2: v1=active@0 v2=registered`,
		"upgrade and back: the old epoch never returns": `
			register 1 v1 -> 1: v1=active@0
			register 2 v2 -> 2: v1=active@0 v2=registered
			activate v2   -> 3: v2=active@20 v1=revoked †0
			activate v2   -> 3: v2=active@20 v1=revoked †0
			activate v1   -> 4: v1=active@40 v2=revoked †0 †20`,
		"canary": `
			register 1 v1 -> 1: v1=active@0
			register 2 v2 -> 2: v1=active@0 v2=registered
			keep v2       -> 3: v2=active@20 v1=active@0
			drain v1      -> 4: v2=active@20 v1=draining@0
			revoke v1     -> 5: v2=active@20 v1=revoked †0`,
		"a drained version comes back cold": `
			register 1 v1 -> 1: v1=active@0
			drain v1      -> 2: v1=draining@0
			activate v1   -> 3: v1=active@20 †0`,
		"purge keeps what serves": `
			register 1 v1 -> 1: v1=active@0
			register 2 v2 -> 2: v1=active@0 v2=registered
			keep v2       -> 3: v2=active@20 v1=active@0
			purge v1      -> 4: v1=active@30 v2=active@20 †0
			purge         -> 5: v2=active@41 v1=active@40 †0 †30 †20`,
		"sweeping takes two passes": `
			register 1 v1 -> 1: v1=active@0
			purge         -> 2: v1=active@10 †0
			sweep         -> 3: v1=active@10 †0'
			sweep         -> 4: v1=active@10
			sweep         -> 4: v1=active@10`,
		"a restart does not undo a revocation": `
			register 1 v1 -> 1: v1=active@0
			revoke v1     -> 2: v1=revoked †0
			register 1 v1 -> 2: v1=revoked †0
			register 2 v2 -> 3: v2=active@30 v1=revoked †0`,
		"a pre-registered version survives an activation": `
			register 1 v1 -> 1: v1=active@0
			register 2 v2 -> 2: v1=active@0 v2=registered
			register 3 v3 -> 3: v1=active@0 v3=registered v2=registered
			activate v3   -> 4: v3=active@30 v1=revoked v2=registered †0`,
		"the label can change, silence keeps it": `
			register 1 v1 -> 1: v1=active@0
			register 1 -   -> 1: v1=active@0
			register 1 prod -> 2: prod=active@0`,
	} {
		t.Run(name, func(t *testing.T) {
			a, r, now := &acts{}, NewRecord("m"), start
			for line := range strings.Lines(script) {
				cmd, want, ok := strings.Cut(strings.TrimSpace(line), "->")
				if !ok {
					continue
				}
				f := strings.Fields(cmd)
				arg := strings.Join(f[1:], " ")
				var err error
				switch s := a.at(now); f[0] {
				case "register":
					label := strings.TrimPrefix(f[2], "-")
					r, err = r.Register(identity(f[1][0], 1), label, true, s)
				case "activate":
					r, err = r.Activate(arg, false, s)
				case "keep":
					r, err = r.Activate(arg, true, s)
				case "purge":
					r, err = r.Purge(cmp.Or(arg, AllVersions), s)
				case "drain":
					r, err = r.Drain(arg, s)
				case "revoke":
					r, err = r.Revoke(arg, s)
				case "sweep":
					if len(r.Dead) > 0 {
						r, err = r.Sweep(r.Dead[0], s)
					}
				}
				if err != nil {
					t.Fatalf("%s: %v", cmd, err)
				}
				if got := brief(r); got != strings.TrimSpace(want) {
					t.Fatalf("%s:\n got %s\nwant %s", cmd, got, strings.TrimSpace(want))
				}
				if _, err := r.Encode(); err != nil {
					t.Fatalf("%s: %v", cmd, err)
				}
				now = now.Add(10 * time.Millisecond)
			}
		})
	}
}

func TestNewLayoutOfActiveWeightsIsActive(t *testing.T) {
	a := &acts{}
	r := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	r = must(t)(r.Register(identity(1, 2), "", false, a.at(start)))
	one, two := r.Variants[identity(1, 1).Variant()], r.Variants[identity(1, 2).Variant()]
	if one.State != Active || two.State != Active || one.Epoch == two.Epoch {
		t.Errorf("got %+v and %+v, want both active, with epochs of their own", one, two)
	}
	r = must(t)(r.Revoke("v1", a.at(start)))
	if r = must(t)(r.Register(identity(1, 3), "", true, a.at(start))); r.Variants[identity(1, 3).Variant()].State != Registered {
		t.Errorf("a new layout of revoked weights is %s", r.Variants[identity(1, 3).Variant()].State)
	}
}

func TestRegistrationsNeverFillUp(t *testing.T) {
	a := &acts{}
	r := must(t)(NewRecord("m").Register(identity(0, 1), "base", true, a.at(start)))
	for i := range 3 * MaxVariants { // a trainer that registers every step
		id := block.Identity{Weights: block.Digest{1, byte(i), byte(i >> 8)}, Layout: block.Digest{1}}
		r = must(t)(r.Register(id, "", true, a.at(start)))
		if i%5 == 0 {
			r = must(t)(r.Activate(id.Weights.String(), false, a.at(start)))
		}
	}
	if len(r.Variants) != MaxVariants {
		t.Errorf("%d variants", len(r.Variants))
	}
	if len(r.Dead) == 0 {
		t.Error("nothing to reclaim")
	}
	stored(t, r)

	r = NewRecord("m")
	for i := range MaxVariants {
		r = must(t)(r.Register(identity(byte(i), 1), "", false, a.at(start)))
		r = must(t)(r.Activate(identity(byte(i), 1).Variant().String(), true, a.at(start)))
	}
	if _, err := r.Register(identity(200, 1), "", false, a.at(start)); !errors.Is(err, ErrTooMany) {
		t.Errorf("with all live: %v, want ErrTooMany", err)
	}
}

func TestNumbersDoNotOverflow(t *testing.T) {
	r := full()
	r.Dead = nil
	for v, e := range r.Variants {
		e.Epoch = MaxNumber - 1
		r.Variants[v] = e
	}
	if _, err := r.Purge(AllVersions, Stamp{Now: start, Act: Act{1}}); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v, want ErrExhausted", err)
	}
}

// TestTransitionsProperty: whatever the sequence of commands and however the clock jumps, the generation grows by one per change, an
// epoch is given out once and to one act, dead grants stay dead, and the record stays valid.
func TestTransitionsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, r, now := &acts{}, NewRecord("m"), start
		type given struct {
			place
			act Act
		}
		owners := map[place]Act{}
		dead := map[given]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if r.Gen == 0 {
					return
				}
				r = stored(t, r).Record
			},
			"command": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(-5000, 5000).Draw(t, "ms")) * time.Millisecond)
				n, l := rapid.ByteRange(1, 4).Draw(t, "weights"), rapid.ByteRange(1, 2).Draw(t, "layout")
				id, s := identity(n, l), a.at(now)
				sel := rapid.SampledFrom([]string{id.Weights.String(), id.Variant().String(), ""}).Draw(t, "selector")
				before := r
				var err error
				switch rapid.SampledFrom([]string{"register", "activate", "keep", "purge", "drain", "revoke", "sweep"}).Draw(t, "kind") {
				case "register":
					r, err = r.Register(id, "", rapid.Bool().Draw(t, "auto"), s)
				case "activate":
					r, err = r.Activate(sel, false, s)
				case "keep":
					r, err = r.Activate(sel, true, s)
				case "purge":
					r, err = r.Purge(sel, s)
				case "drain":
					r, err = r.Drain(sel, s)
				case "revoke":
					r, err = r.Revoke(sel, s)
				case "sweep":
					if len(r.Dead) > 0 {
						r, err = r.Sweep(r.Dead[rapid.IntRange(0, len(r.Dead)-1).Draw(t, "dead")], s)
					}
				}
				if err != nil {
					if !errors.Is(err, ErrNoVersion) && !errors.Is(err, ErrInvalid) {
						t.Fatalf("unexpected: %v", err)
					}
					return
				}
				changed := brief(before) != brief(r)
				if changed && r.Gen != before.Gen+1 || !changed && r.Gen != before.Gen {
					t.Fatalf("generation went from %d to %d: %s -> %s", before.Gen, r.Gen, brief(before), brief(r))
				}
				for v, e := range before.Variants {
					if after := r.Variants[v]; e.Epoch != 0 && (after.Epoch != e.Epoch || after.Act != e.Act) {
						dead[given{place{v, e.Epoch}, e.Act}] = true
					}
				}
				for v, e := range r.Variants {
					if e.Epoch == 0 {
						continue
					}
					p := place{v, e.Epoch}
					if owner, ok := owners[p]; ok && owner != e.Act {
						t.Fatalf("epoch %v given out under %v and %v", p, owner, e.Act)
					}
					owners[p] = e.Act
					if dead[given{p, e.Act}] {
						t.Fatalf("dead grant %v is live again", p)
					}
				}
			},
		})
	})
}

// Warming gives an epoch that activation keeps, beside a version that serves; it never brings back what was revoked.
func TestWarmThenActivate(t *testing.T) {
	rec := NewRecord("m")
	step := func(what string, r Record, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		rec = r
	}
	n := byte(0)
	stamp := func() Stamp { n++; return Stamp{Now: time.UnixMilli(int64(n)), Act: Act{n}} }
	old, next := identity(1, 1), identity(2, 1)
	r, err := rec.Register(old, "old", true, stamp())
	step("register old", r, err)
	r, err = rec.Register(next, "next", true, stamp())
	step("register next", r, err)
	r, err = rec.Warm("next", stamp())
	step("warm", r, err)
	warm := rec.Variants[next.Variant()]
	if warm.State != Warming || warm.Epoch == 0 || rec.Variants[old.Variant()].State != Active {
		t.Fatalf("warming: %+v beside %+v", warm, rec.Variants[old.Variant()])
	}
	again, err := rec.Warm("next", stamp())
	if err != nil || again.Gen != rec.Gen {
		t.Errorf("warming twice changes the record: generation %d, then %d, %v", rec.Gen, again.Gen, err)
	}
	r, err = rec.Activate("next", false, stamp())
	step("activate", r, err)
	if e := rec.Variants[next.Variant()]; e.State != Active || e.Epoch != warm.Epoch || e.Act != warm.Act {
		t.Errorf("activation gave %+v, what was warmed is under epoch %d", e, warm.Epoch)
	}
	if e := rec.Variants[old.Variant()]; e.State != Revoked {
		t.Errorf("the old version is %s", e.State)
	}
	if _, err := rec.Warm("old", stamp()); !errors.Is(err, ErrInvalid) {
		t.Errorf("warming a revoked version: %v", err)
	}
	r, err = rec.Revoke("next", stamp())
	step("revoke", r, err)
}

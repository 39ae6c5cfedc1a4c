package gate_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/gate"
)

func TestDecide(t *testing.T) {
	prefill := gate.Prefill{Token: 100e-6} // 1,600 tokens take 160 ms
	work := gate.Work{At: 0, End: 1600, Block: 16, TokenBytes: 2048}
	link := func(rtt, all float64) gate.Path { return gate.Path{RTT: rtt, Byte: all / (1600 * 2048)} }
	for _, c := range []struct {
		name string
		path gate.Path
		pre  gate.Prefill
		work gate.Work
		want gate.Choice
		meet int
	}{
		{"nothing to get", link(0.001, 0.01), prefill, gate.Work{At: 160, End: 160, Block: 16, TokenBytes: 2048}, gate.Compute, 160},
		{"nothing measured", gate.Path{}, gate.Prefill{}, work, gate.Measure, 0},
		{"link not measured", gate.Path{RTT: 0.001}, prefill, work, gate.Measure, 0},
		{"engine not measured", link(0.001, 0.01), gate.Prefill{}, work, gate.Measure, 0},
		{"fast link", link(0.0003, 0.01), prefill, work, gate.Load, 0},
		{"even", link(0, 0.16), prefill, work, gate.Both, 800},
		{"half as fast as computing", link(0, 0.32), prefill, work, gate.Both, 1072},
		{"slow link", link(0.0003, 16), prefill, work, gate.Compute, 1600},
		{"round trip as long as computing", link(0.16, 0.001), prefill, work, gate.Compute, 1600},
		{"round trip of most of computing", link(0.12, 0.001), prefill, work, gate.Compute, 1600},
		{"round trip of half of computing", link(0.08, 0.001), prefill, work, gate.Load, 0},
		{"half is computed", link(0, 0.16), prefill, gate.Work{At: 800, End: 1600, Block: 16, TokenBytes: 2048}, gate.Both, 1200},
	} {
		if got := gate.Decide(c.path, c.pre, c.work); got.Choice != c.want || got.Meet != c.meet {
			t.Errorf("%s: %v, meeting at %d; want %v at %d (load %.4f, compute %.4f, both %.4f)",
				c.name, got.Choice, got.Meet, c.want, c.meet, got.Load, got.Compute, got.Both)
		}
	}
}

// Whatever the estimates: the plan is never slower than computing everything, by them, and no other meeting point is better.
func TestNoOtherMeetingPointIsBetter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		block := rapid.IntRange(1, 64).Draw(t, "block")
		at := rapid.IntRange(0, 100).Draw(t, "at")
		w := gate.Work{At: at * block, End: (at + rapid.IntRange(0, 200).Draw(t, "blocks")) * block, Block: block, TokenBytes: 1000}
		path := gate.Path{RTT: rapid.Float64Range(1e-5, 2).Draw(t, "rtt"), Byte: rapid.Float64Range(1e-10, 1e-5).Draw(t, "byte")}
		pre := gate.Prefill{Token: rapid.Float64Range(0, 1e-2).Draw(t, "token"), Position: rapid.Float64Range(1e-12, 1e-5).Draw(t, "position")}
		plan := gate.Decide(path, pre, w)
		if plan.Meet < w.At || plan.Meet > w.End || plan.Meet%block != 0 {
			t.Fatalf("meeting at %d of %+v", plan.Meet, w)
		}
		cost := func(m int) float64 {
			compute := pre.Seconds(w.At, m-w.At)
			if m == w.End {
				return compute
			}
			return max(compute, path.Seconds(float64(w.End-m)*w.TokenBytes))
		}
		if got := cost(plan.Meet); got > plan.Compute*(1+1e-9) {
			t.Fatalf("%v takes %v, computing everything %v", plan.Choice, got, plan.Compute)
		}
		best := math.Inf(1)
		for m := w.At; m <= w.End; m += block {
			best = min(best, cost(m))
		}
		if w.At < w.End && plan.Both > best*(1+1e-9) {
			t.Fatalf("meeting takes %v, the best meeting point %v", plan.Both, best)
		}
	})
}

func TestAsk(t *testing.T) {
	prefill, most := gate.Prefill{Token: 100e-6}, 100*time.Millisecond
	work := gate.Work{End: 1600, Block: 16, TokenBytes: 2048}
	for _, c := range []struct {
		name string
		path gate.Path
		pre  gate.Prefill
		work gate.Work
		ask  bool
		wait time.Duration
	}{
		{"nothing measured", gate.Path{}, gate.Prefill{}, work, true, most},
		{"near", gate.Path{RTT: 300e-6}, prefill, work, true, 1600 * time.Microsecond},
		{"less near", gate.Path{RTT: 1e-3}, prefill, work, true, 2 * time.Millisecond},
		{"far: compute meanwhile", gate.Path{RTT: 10e-3}, prefill, work, true, 0},
		{"too far", gate.Path{RTT: 0.2}, prefill, work, false, 0},
		{"too far for this", gate.Path{RTT: 10e-3}, prefill, gate.Work{End: 64, Block: 16, TokenBytes: 2048}, false, 0},
		{"nothing to ask for", gate.Path{RTT: 300e-6}, prefill, gate.Work{At: 64, End: 64, Block: 16}, false, 0},
	} {
		if ask, wait := gate.Ask(c.path, c.pre, c.work, most); ask != c.ask || wait.Round(time.Microsecond) != c.wait {
			t.Errorf("%s: ask %v, wait %v; want %v, %v", c.name, ask, wait, c.ask, c.wait)
		}
	}
}

// Whatever the engine's two numbers, and however a prompt is cut into calls: they are found, and found again after they have changed.
func TestPrefillMeterFindsWhatWasMeasured(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m gate.PrefillMeter
		if m.Estimate().Known() {
			t.Fatal("known before anything was measured")
		}
		for range 2 {
			truth := gate.Prefill{Token: rapid.Float64Range(1e-6, 1e-3).Draw(t, "token"), Position: rapid.Float64Range(0, 1e-7).Draw(t, "position")}
			for range 120 {
				for at := 0; at < 1500; {
					n := rapid.IntRange(64, 512).Draw(t, "n")
					m.Observe(at, n, time.Duration(truth.Seconds(at, n)*1e9))
					at += n
				}
			}
			got := m.Estimate()
			for _, at := range []int{0, 500, 1500} {
				if g, w := got.Seconds(at, 100), truth.Seconds(at, 100); math.Abs(g-w) > 0.02*w {
					t.Fatalf("100 tokens at %d take %v, estimated %v", at, w, g)
				}
			}
		}
	})
}

// Nonsense that a clock may bring does not lead to nonsense.
func TestPrefillMeterIsNeverNegative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m gate.PrefillMeter
		for range rapid.IntRange(1, 20).Draw(t, "observations") {
			m.Observe(rapid.IntRange(0, 1<<20).Draw(t, "at"), rapid.IntRange(-1, 4096).Draw(t, "n"), time.Duration(rapid.Int64Range(-1, 1e12).Draw(t, "d")))
		}
		if p := m.Estimate(); p.Token < 0 || p.Position < 0 || math.IsNaN(p.Seconds(0, 1)) || math.IsInf(p.Seconds(1<<20, 1<<20), 0) {
			t.Fatalf("%+v", p)
		}
	})
}

func TestParseMode(t *testing.T) {
	for _, g := range []gate.Mode{gate.Auto, gate.Always, gate.Never} {
		if got, err := gate.ParseMode(g.String()); err != nil || got != g {
			t.Errorf("%v: %v, %v", g, got, err)
		}
	}
	if _, err := gate.ParseMode("sometimes"); err == nil {
		t.Error("no error for a gate that does not exist")
	}
}

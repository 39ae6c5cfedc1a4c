package worker_test

import (
	"github.com/kvtier/kvtier/gate"
	"testing"
	"testing/synctest"

	"github.com/kvtier/kvtier/worker"
)

func explain(t *testing.T, r *worker.Replica, req worker.Request) worker.Explanation {
	t.Helper()
	x, err := r.Explain(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// sum counts blocks by where they are, why not, and what would be done.
func sum(x worker.Explanation) map[string]int {
	all := map[string]int{}
	for _, b := range x.Blocks {
		all[b.Found+" "+b.Reason+" "+b.Action]++
	}
	return all
}

// What explain says is what the next request does.
func TestExplainForetellsTheRequest(t *testing.T) {
	for name, c := range map[string]struct {
		link float64
		want func(map[string]int) bool
	}{
		"fast": {0.05, func(n map[string]int) bool { return n["remote none load"] == gatedBlocks }},
		"even": {1, func(n map[string]int) bool { return n["remote none load"] > 20 && n["remote gate compute"] > 20 }},
		"slow": {40, func(n map[string]int) bool { return n["remote gate compute"] == gatedBlocks }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newGateWorld(t)
				w.even(c.link)
				tokens := w.fresh()
				if n := sum(explain(t, w.reader, worker.Request{Tokens: tokens})); n["none cold compute"] != gatedBlocks {
					t.Errorf("of a prompt that nobody has seen: %v", n)
				}
				for range 4 {
					w.ask(w.reader, w.stored())
				}
				tokens = w.stored()
				before := w.reader.Cache().Stats()
				x := explain(t, w.reader, worker.Request{Tokens: tokens})
				if !c.want(sum(x)) || x.Uncached != 1 || x.Estimates.ComputeMs == 0 {
					t.Errorf("%v, %+v", sum(x), x.Estimates)
				}
				if after := w.reader.Cache().Stats(); after.LookupBlocks != before.LookupBlocks || after.HotBlocks != before.HotBlocks {
					t.Error("explaining has changed something")
				}
				_, res := w.ask(w.reader, tokens)
				loads := (gatedPrompt - 1 - x.Meet) / x.BlockTokens * x.BlockTokens
				if x.Choice == "compute" {
					loads = 0
				}
				if d := res.RemoteTokens - loads; d < -256 || d > 256 {
					t.Errorf("%d tokens loaded, foretold were %d", res.RemoteTokens, loads)
				}
				if n := sum(explain(t, w.reader, worker.Request{Tokens: tokens})); n["hot none use"] != gatedBlocks {
					t.Errorf("after the request: %v", n)
				}
				if n := sum(explain(t, w.reader, worker.Request{Tokens: tokens, Salt: "other"})); n["none cold compute"] != gatedBlocks {
					t.Errorf("another tenant is told: %v", n)
				}
			})
		})
	}
}

func TestExplainRefusesWhatARequestWouldNotBe(t *testing.T) {
	w := gated(t, nil, &paced{}, gate.Auto)
	if _, err := w.Explain(t.Context(), worker.Request{}); err == nil {
		t.Error("an empty prompt was explained")
	}
	if n := sum(explain(t, w, worker.Request{Tokens: text(1, 33)})); n["none unshared compute"] != 2 {
		t.Errorf("without a remote tier: %v", n)
	}
}

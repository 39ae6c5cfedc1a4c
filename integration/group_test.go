package integration

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// group is two coordinators and two workers that share whatever Redis they were launched with.
type group struct {
	t            *testing.T
	coordinators [2]*process
	workers      [2]*process
	turn         int // of prompts that nobody has sent yet
}

// startGroup launches both coordinators, then both workers, and waits until all are ready.
func startGroup(t *testing.T, launch func(role string, args ...string) *process) *group {
	t.Helper()
	g := &group{t: t}
	for i := range g.coordinators {
		g.coordinators[i] = launch("coordinator")
	}
	for i := range g.workers {
		g.workers[i] = launch("worker", "--coordinator", g.coordinators[i].url)
	}
	g.ready()
	return g
}

// on launches processes of the current binary on one URL for data and control.
func on(t *testing.T, url string) func(role string, args ...string) *process {
	return func(role string, args ...string) *process {
		t.Helper()
		return start(t, append([]string{role, "--redis", url}, args...)...)
	}
}

// ready waits until every worker has a lease and a tier.
func (g *group) ready() {
	g.t.Helper()
	for _, w := range g.workers {
		w.await("ready", 90*time.Second, func() bool { return w.status() == "ready" })
	}
}

// fresh is a long prompt that begins like no other.
func (g *group) fresh() string {
	g.turn++
	return strings.Repeat("O", g.turn%7+1) + time.Now().Format("150405.000000 ") + long
}

// share has one worker compute a prompt, and the other one find it in Redis and say the same.
func (g *group) share(from, to int) {
	g.t.Helper()
	var first, second answer
	g.workers[to].await("served from Redis", 20*time.Second, func() bool {
		prompt := g.fresh()
		first = g.workers[from].complete(prompt)
		time.Sleep(100 * time.Millisecond) // stored in the background; asked too early, the other would compute it itself
		second = g.workers[to].complete(prompt)
		return second.Usage.Details.Remote > 0
	})
	if first.Usage.Details.Cached != 0 {
		g.t.Errorf("%d cached tokens of a prompt that nobody has sent", first.Usage.Details.Cached)
	}
	if !slices.Equal(first.Choices[0].TokenIDs, second.Choices[0].TokenIDs) {
		g.t.Errorf("output differs: %v and %v", first.Choices[0].TokenIDs, second.Choices[0].TokenIDs)
	}
}

// model runs kvtier model against one coordinator.
func (g *group) model(coordinator int, args ...string) string {
	g.t.Helper()
	return kvtier(g.t, append(append([]string{"model"}, args...), "--coordinator", g.coordinators[coordinator].url)...)
}

// swap activates the weights that are not active, and sees that nothing of the old ones is used.
func (g *group) swap(coordinator int) {
	g.t.Helper()
	prompt := g.fresh()
	old := g.workers[0].complete(prompt).KVTier.Label
	next := map[string]string{v1: v2, v2: v1}[old]
	g.model(coordinator, "activate", "shakespeare", next)
	for i, w := range g.workers {
		w.await("on "+next, 20*time.Second, func() bool { return w.complete("x").KVTier.Label == next && w.status() == "ready" })
		if a := w.complete(prompt); i == 0 && a.Usage.Details.Cached != 0 {
			g.t.Errorf("%d tokens of the old weights are used", a.Usage.Details.Cached)
		}
	}
}

// purge sees that no entry of before is used, and that the coordinator learns when all workers have acted.
func (g *group) purge(coordinator int) {
	g.t.Helper()
	prompt := g.fresh()
	for _, w := range g.workers {
		w.await("caching", 20*time.Second, func() bool { return w.complete(prompt).Usage.Details.Hot > 0 })
	}
	g.model(coordinator, "purge", "shakespeare")
	g.coordinators[coordinator].await("told by all workers", 20*time.Second, func() bool {
		return strings.Contains(g.model(coordinator, "status", "shakespeare"), "is complete")
	})
	if a := g.workers[0].complete(prompt); a.Usage.Details.Cached != 0 {
		g.t.Errorf("%d purged tokens are used", a.Usage.Details.Cached)
	}
}

// drill is all that a fleet does in a day. Either coordinator is asked: one leads, both answer.
func (g *group) drill() {
	g.t.Helper()
	g.share(0, 1)
	g.swap(0)
	g.share(1, 0)
	g.purge(1)
	g.share(0, 1)
}

package stalecheck

import (
	"context"
	"errors"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
)

// member is a worker: a real replica and a real cache in a simulated process.
type member struct {
	world *world
	name  string
	lives int // incarnations

	onExpiry                        coordinator.OnExpiry
	policy                          tiered.WritePolicy
	gate                            gate.Mode
	hotBytes, spillBytes, fillBytes int64

	cache   *tiered.Cache
	replica *worker.Replica
	watch   *coordinator.Stepped
	seen    coordinator.View // what the replica was told last
	tasks   []func()
	running int // requests

	cutData, cutControl bool
	asking              *question // a poll under way

	// What the invariants remember.
	top    uint64
	sums   coordinator.Sum
	ended  map[coordinator.Grant]bool
	had    map[coordinator.Grant]bool
	readAt time.Time // when Redis was read for the lease in force
}

// question is a poll that has begun.
type question struct {
	from  time.Time
	asked bool
	found coordinator.Stored
	err   error
	at    time.Time // when Redis answered
}

const slab = 8<<10 + 512 // what a block costs the hot tier

func newMember(w *world, name string) *member {
	m := &member{world: w, name: name}
	m.onExpiry = []coordinator.OnExpiry{coordinator.Local, coordinator.Strict}[w.rng.IntN(2)]
	m.policy = []tiered.WritePolicy{tiered.WriteThrough, tiered.WriteOnSecondHit, tiered.WriteOnEvict}[w.rng.IntN(3)]
	m.gate = []gate.Mode{gate.Auto, gate.Auto, gate.Always}[w.rng.IntN(3)]
	m.hotBytes = int64([]int{4, 18, 40}[w.rng.IntN(3)]) * slab
	m.spillBytes = int64([]int{3, 12}[w.rng.IntN(2)]) * slab
	m.fillBytes = int64([]int{3, 40}[w.rng.IntN(2)]) * slab
	m.start()
	return m
}

// start is a new process on weights of its choice.
func (m *member) start() {
	w := m.world
	m.lives++
	m.watch = coordinator.NewStepped(model, lease)
	m.seen, m.tasks, m.asking, m.top, m.sums = coordinator.View{}, nil, nil, 0, ""
	m.had, m.ended = map[coordinator.Grant]bool{}, map[coordinator.Grant]bool{}
	var err error
	m.cache, err = tiered.New(tiered.Options{
		Layout: layout, Remote: &client{m, w.redis}, HotBytes: m.hotBytes, SpillBytes: m.spillBytes, FillBytes: m.fillBytes,
		WritePolicy: m.policy, Steps: &tiered.Steps{Now: func() time.Time { return w.now }, Go: m.later, Wait: m.wait},
	})
	if err == nil {
		n := w.rng.IntN(checkpoints)
		w.log("%s starts on %s, %s", m.name, label(n), m.onExpiry)
		m.replica, err = worker.NewReplica(worker.Options{
			Engine: &oracle{w: m, id: identity(n)}, Label: label(n), Cache: m.cache, Grants: m, OnExpiry: m.onExpiry, Gate: m.gate,
			MaxSequences: maxNesting + 2,
			PrefixWait:   -1, // all requests are of one goroutine: none may wait for another
		})
	}
	if err != nil {
		panic(err)
	}
}

// stop ends the process; what was queued is lost.
func (m *member) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m.cache.Close(ctx)
}

// View implements worker.Grants: what the replica acts on.
func (m *member) View() coordinator.View {
	m.seen = m.watch.View(m.world.now)
	return m.seen
}

func (m *member) resident() block.Variant {
	if m.replica == nil {
		return block.Variant{}
	}
	e, _ := m.replica.Resident()
	return e.Identity().Variant()
}

// later keeps a task of the cache for any later moment.
func (m *member) later(task func()) { m.tasks = append(m.tasks, task) }

// task runs one of them, in any order.
func (m *member) task() bool {
	if len(m.tasks) == 0 {
		return false
	}
	i := m.world.rng.IntN(len(m.tasks))
	t := m.tasks[i]
	m.tasks = append(m.tasks[:i], m.tasks[i+1:]...)
	t()
	return true
}

// wait is a request that waits for a fill: others go on, and sometimes time is up.
func (m *member) wait(done <-chan struct{}) bool {
	for range 8 {
		select {
		case <-done:
			return true
		default:
		}
		if !m.world.calm && m.world.one(12) || !m.task() {
			break
		}
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// random is a request like those that clients send.
func (w *world) random() request {
	r := request{tenant: w.rng.IntN(2)}
	n, depth := node(0), 1+w.rng.IntN(maxDepth)
	for d := range depth {
		b := w.rng.IntN(branches)
		if w.one(2) {
			b = 0 // most prompts share their beginnings
		}
		n = n.child(b)
		r.path = append(r.path, n)
		r.tokens = append(r.tokens, int32(b), int32(d))
	}
	r.tokens = append(r.tokens, 7)
	return r
}

var salts = [2]string{"", "tenant"}

func (m *member) request() { m.send(m.world.random()) }

func (m *member) send(r request) worker.Result {
	w := m.world
	w.sending = r
	w.log("%s is asked for prefix %x of tenant %d", m.name, r.path[len(r.path)-1], r.tenant)
	m.running++
	res, err := m.replica.Complete(context.Background(), worker.Request{Tokens: r.tokens, Salt: salts[r.tenant]})
	m.running--
	if err != nil {
		w.fail("error", "requests are answered", err.Error())
	}
	w.counts[cRequests]++
	w.counts[cHot] += int64(res.HotTokens / layout.BlockTokens)
	w.counts[cRemote] += int64(res.RemoteTokens / layout.BlockTokens)
	w.log("%s answered: %d hot, %d remote, miss %v", m.name, res.HotTokens, res.RemoteTokens, res.Miss)
	return res
}

// poll moves a poll one step on: it begins, Redis answers, the answer arrives. Other events may lie between.
func (m *member) poll() {
	w := m.world
	if m.asking == nil {
		m.asking = &question{from: w.now}
		if w.one(3) {
			return
		}
	}
	if q := m.asking; !q.asked {
		q.asked, q.at = true, w.now
		if m.cutControl {
			q.err = errDown
		} else {
			q.found, q.err = w.control.load()
		}
		if w.one(3) {
			return
		}
	}
	m.answer()
}

func (m *member) answer() {
	w, q := m.world, m.asking
	m.asking = nil
	changed, err := m.watch.Reply(q.found, q.err, q.from, w.now)
	v := m.watch.View(w.now)
	switch {
	case err != nil:
		w.counts[cRefused]++
		w.log("%s polls: %v", m.name, err)
	default:
		m.readAt = q.at
		w.check(iGeneration, v.Gen >= m.top && (v.Gen > m.top || v.Sum == m.sums), "%s went from generation %d %s to %d %s", m.name, m.top, m.sums, v.Gen, v.Sum)
		m.top, m.sums = v.Gen, v.Sum
	}
	if !m.readAt.IsZero() {
		w.check(iLease, !v.LeaseUntil.After(m.readAt.Add(lease)), "%s read Redis at %v and holds a lease until %v", m.name, m.readAt, v.LeaseUntil)
	}
	if changed {
		w.counts[cAdopted]++
		w.log("%s adopts generation %d", m.name, v.Gen)
		m.remember(v)
		m.replica.Refresh() // what OnChange does
	}
}

// remember notes which activations have ended, and that none of them comes back.
func (m *member) remember(v coordinator.View) {
	now := map[coordinator.Grant]bool{}
	for _, x := range v.Versions() {
		if g, ok := v.Grant(x.Variant); ok {
			now[g] = true
			m.world.check(iRevival, !m.ended[g], "%s is granted epoch %d %v again by generation %d", m.name, g.Epoch, g.Act, v.Gen)
		}
	}
	for g := range m.had {
		if !now[g] {
			m.ended[g] = true
		}
	}
	m.had = now
}

func (m *member) beat() {
	if !m.cutControl {
		m.world.control.beat(m.watch.Heartbeat(m.incarnation(), m.world.now))
	}
}

func (m *member) incarnation() string { return m.name + "." + string(rune('a'+m.lives%26)) }

// follow is one turn of the loop that keeps a replica in step with its record.
func (m *member) follow() {
	if next, ok := m.replica.Step(m.watch.View(m.world.now), m.loadable()); ok {
		m.swapTo(next)
	}
}

func (m *member) loadable() []worker.Checkpoint {
	all := make([]worker.Checkpoint, checkpoints)
	for n := range all {
		all[n] = worker.Checkpoint{Label: label(n), Identity: identity(n), Open: func(context.Context) (engine.Engine, error) {
			if !m.world.calm && m.world.one(10) {
				return nil, errDown // the file is gone
			}
			return &oracle{w: m, id: identity(n)}, nil
		}}
	}
	return all
}

// swap is an operator who loads other weights, whatever the record says.
func (m *member) swap() { m.swapTo(m.loadable()[m.world.rng.IntN(checkpoints)]) }

func (m *member) swapTo(c worker.Checkpoint) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if m.running > 0 && !mutation.Is(mutation.SwapWithoutDraining) { // that bug would not wait
		cancel() // it would wait for requests that wait for this event: the operator gives up
	}
	err := m.replica.SwapWeights(ctx, c.Label, c.Open)
	m.world.log("%s swaps to %s: %v", m.name, c.Label, err)
	if err == nil {
		m.world.counts[cSwaps]++
	} else if !errors.Is(err, context.Canceled) && !errors.Is(err, errDown) {
		m.world.fail("error", "a swap fails only for its reasons", err.Error())
	}
}

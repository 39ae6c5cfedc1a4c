package stalecheck

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
)

const (
	model = "m"
	lease = 5 * time.Second
	// maxNesting is how deep events happen in the middle of events.
	maxNesting = 2
	traced     = 48
)

// Things that are counted, to show that a run was not empty.
const (
	cBlocks = iota
	cHot
	cRemote
	cRequests
	cSwaps
	cAdopted
	cRefused
	cChanges
	cConflicts
	cReasserts
	cSwept
	cBadValues
	cStored
	cFaults
	counters
)

var counterNames = [counters]string{
	"blocks_checked", "blocks_hot", "blocks_remote", "requests", "swaps", "records_adopted", "records_refused", "record_changes",
	"record_conflicts", "records_rewritten", "epochs_swept", "bad_values_refused", "values_stored", "faults",
}

// request is what a client sends.
type request struct {
	tenant int
	path   []node // of each full block
	tokens []int32
}

// world is one episode: members, coordinators, Redis and time.
type world struct {
	seed    uint64
	episode int
	without fault
	rng     *rand.Rand
	now     time.Time
	ops     int
	limit   int
	depth   int

	redis   *redis
	control *control
	members []*member
	leaders []*leader
	sending request
	calm    bool // no faults, no nesting: healing

	checks    [invariants]int64
	counts    [counters]int64
	violation *Violation
	events    [traced]event
	nEvents   int
	acts      uint64
	table     []step
	total     int
}

type event struct {
	format string
	args   []any
	op     int
	depth  int
}

// step is something that can happen, and how often.
type step struct {
	weight int
	do     func(*world)
	nested bool // also in the middle of something else
}

func newWorld(seed uint64, episode int, without fault) *world {
	w := &world{
		seed: seed, episode: episode, without: without, rng: rand.New(rand.NewPCG(seed, uint64(episode))),
		now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}
	w.redis, w.control = newRedis(w), newControl(w)
	for i := range 1 + w.rng.IntN(3) {
		w.leaders = append(w.leaders, newLeader(w, fmt.Sprintf("c%d", i+1)))
	}
	for i := range 2 + w.rng.IntN(3) {
		w.members = append(w.members, newMember(w, fmt.Sprintf("w%d", i+1)))
	}
	w.table = steps()
	for _, s := range w.table {
		w.total += s.weight
	}
	return w
}

func steps() []step {
	return []step{
		{260, func(w *world) { w.member().request() }, true},
		{260, func(w *world) { w.member().task() }, true},
		{110, func(w *world) { w.member().poll() }, true},
		{50, func(w *world) { w.member().beat() }, true},
		{50, func(w *world) { w.member().follow() }, true},
		{5, func(w *world) { w.member().swap() }, true},
		{30, (*world).deliverHint, true},
		{10, func(w *world) { w.leader().change() }, true},
		{12, func(w *world) { w.leader().commit() }, true},
		{12, func(w *world) { w.leader().reconcile() }, true},
		{12, func(w *world) { w.leader().reclaim() }, true},
		{90, (*world).tick, true},
		{30, (*world).fault, true},
		{1, (*world).heal, false},
	}
}

// run goes on until n operations, a violation, or the end of ctx.
func (w *world) run(ctx context.Context, n int) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case errStop:
		default:
			w.fail("panic", "the program never panics", fmt.Sprint(r))
		}
	}()
	w.limit = n
	for w.ops < n {
		if w.ops&1023 == 0 && ctx.Err() != nil {
			return
		}
		w.any(false)
	}
	w.heal()
	for _, m := range w.members {
		m.stop()
	}
}

// any lets one event happen.
func (w *world) any(nested bool) {
	for {
		at := w.rng.IntN(w.total)
		for i := range w.table {
			s := &w.table[i]
			if at -= s.weight; at >= 0 {
				continue
			}
			if nested && !s.nested {
				break
			}
			w.ops++
			s.do(w)
			w.bounds()
			return
		}
	}
}

// yield is where real code has called out: something else may happen before it goes on. It reports whether something did.
func (w *world) yield() bool {
	if w.calm || w.depth >= maxNesting || w.rng.IntN(16) != 0 {
		return false
	}
	w.depth++
	sending := w.sending
	w.any(true)
	w.sending = sending
	w.depth--
	return true
}

func (w *world) member() *member { return w.members[w.rng.IntN(len(w.members))] }
func (w *world) leader() *leader { return w.leaders[w.rng.IntN(len(w.leaders))] }

func (w *world) one(in int) bool { return w.rng.IntN(in) == 0 }

// tick lets time pass: mostly little, sometimes more than a lease.
func (w *world) tick() {
	d := time.Duration(w.rng.IntN(4)) * time.Millisecond
	switch k := w.rng.IntN(40); {
	case k == 0 && w.without&faultPause == 0:
		d = time.Duration(w.rng.IntN(9000)) * time.Millisecond
	case k < 10:
		d = time.Duration(w.rng.IntN(400)) * time.Millisecond
	}
	w.now = w.now.Add(d)
	w.log("%v pass", d)
}

// stamp is what a coordinator takes from the outside.
func (w *world) stamp() coordinator.Stamp {
	w.acts++
	a := coordinator.Act{15: 1}
	for i := range 6 {
		a[i] = byte(w.acts >> (8 * i))
	}
	return coordinator.Stamp{Now: w.now, Act: a}
}

// identity is the n-th weights.
func identity(n int) block.Identity {
	return block.Identity{Weights: block.Digest{0xaa, byte(n)}, Layout: layoutDigest}
}

var layoutDigest = layout.Digest()

const checkpoints = 3

func label(n int) string { return fmt.Sprintf("v%d", n) }

// log remembers an event. Formatting waits until somebody asks.
func (w *world) log(format string, args ...any) {
	w.events[w.nEvents%traced] = event{format, args, w.ops, w.depth}
	w.nEvents++
}

// check counts a comparison and ends the run if it fails.
func (w *world) check(i int, ok bool, format string, args ...any) bool {
	w.checks[i]++
	if !ok {
		w.fail(fmt.Sprintf("I%d", i+1), texts[i], fmt.Sprintf(format, args...))
	}
	return ok
}

func (w *world) fail(name, text, detail string) {
	if w.violation == nil {
		v := &Violation{Invariant: name, Text: text, Detail: detail, Seed: w.seed, Episode: w.episode, Op: w.ops}
		for i := max(0, w.nEvents-traced); i < w.nEvents; i++ {
			e := w.events[i%traced]
			v.Trace = append(v.Trace, fmt.Sprintf("%6d %*s%s", e.op, 2*e.depth, "", fmt.Sprintf(e.format, e.args...)))
		}
		w.violation = v
	}
	panic(errStop)
}

func (w *world) bounds() {
	m := w.members[w.ops%len(w.members)]
	if m.replica == nil {
		return
	}
	s := m.cache.Sizes()
	w.check(iBounds, s.HotBytes <= m.hotBytes && s.SpillBytes <= m.spillBytes && s.FillingBytes >= 0 && s.FillingBytes <= m.fillBytes,
		"%s: %+v of %d, %d, %d", m.name, s, m.hotBytes, m.spillBytes, m.fillBytes)
}

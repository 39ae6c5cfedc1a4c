package spill_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/tiered/internal/spill"
)

// piece is a block of a test: the depth-th of the chain that trunk and branch name. Branches of a trunk share the first blocks.
type piece struct {
	trunk, branch, depth int
	gen                  int
	cost                 int64
}

// shared is how many blocks all branches of a trunk have in common.
const shared = 2

// name is what tells the hash of a piece from those of others.
type name struct{ trunk, branch, depth int }

func (p *piece) name() name {
	n := name{p.trunk, p.branch, p.depth}
	if n.depth < shared {
		n.branch = 0
	}
	return n
}

func (n name) hash() (h block.Hash) {
	h[0] = 1
	binary.LittleEndian.PutUint32(h[1:], uint32(n.trunk))
	binary.LittleEndian.PutUint32(h[5:], uint32(n.branch))
	binary.LittleEndian.PutUint32(h[9:], uint32(n.depth))
	return h
}

// parent returns the piece before p.
func (p *piece) parent() *piece {
	before := *p
	before.depth--
	return &before
}

func (p *piece) Hash() block.Hash { return p.name().hash() }
func (p *piece) Before() block.Hash {
	if p.depth == 0 {
		return block.Hash{}
	}
	return p.parent().Hash()
}
func (p *piece) Depth() int         { return p.depth }
func (p *piece) Cost() int64        { return p.cost }
func (p *piece) Twin(o *piece) bool { return p.gen == o.gen }

// node says on which of n nodes a piece lies.
func (p *piece) node(n int) int {
	m := p.name()
	return (m.trunk*7 + m.branch*3 + m.depth*5 + m.trunk*m.depth) % n
}

// fleet is a remote tier of some nodes, each of which can be sick in its own way.
type fleet struct {
	now   *time.Time
	sick  []error         // by node
	slow  []bool          // by node: it does not answer before the context ends
	has   []map[name]bool // by node
	put   int             // bytes that nodes took
	vain  int             // bytes that nodes refused
	calls int
	gap   string
	wrote func(p *piece) // nil, or told of each that is stored
	rate  int            // bytes that a call has time for; 0 for any
}

func newFleet(nodes int, now *time.Time) *fleet {
	f := &fleet{now: now, sick: make([]error, nodes), slow: make([]bool, nodes)}
	for range nodes {
		f.has = append(f.has, map[name]bool{})
	}
	return f
}

var (
	errDown = fmt.Errorf("%w: connection refused", store.ErrNode)
	errFull = fmt.Errorf("%w: OOM", store.ErrFull)
)

func (f *fleet) there(p *piece) bool { return f.has[p.node(len(f.has))][p.name()] }

func (f *fleet) Has(ctx context.Context, r spill.Run[*piece]) (n int, err error) {
	f.calls++
	all := r.Blocks
	if r.Parent {
		all = append([]*piece{r.Blocks[0].parent()}, all...)
	}
	for i, p := range all {
		at := p.node(len(f.has))
		if f.sick[at] != nil && !errors.Is(f.sick[at], store.ErrFull) {
			return i, f.sick[at]
		}
		if f.slow[at] {
			return i, context.DeadlineExceeded
		}
		if !f.there(p) {
			return i, nil
		}
	}
	return len(all), nil
}

func (f *fleet) Write(ctx context.Context, pieces []*piece) []error {
	f.calls++
	errs := make([]error, len(pieces))
	with := map[name]bool{}
	for _, p := range pieces {
		with[p.name()] = true
	}
	sum := 0
	for _, p := range pieces {
		sum += int(p.cost)
	}
	late := f.rate > 0 && sum > f.rate // nothing of a call that is cut short gets through
	for i, p := range pieces {
		at := p.node(len(f.has))
		if p.depth > 0 && !with[p.parent().name()] && !f.there(p.parent()) && f.gap == "" {
			f.gap = fmt.Sprintf("%+v without the one before it", *p)
		}
		switch {
		case late:
			errs[i] = context.DeadlineExceeded
			continue
		case f.sick[at] != nil:
			errs[i] = f.sick[at]
			f.vain += int(p.cost)
			continue
		case f.slow[at]:
			errs[i] = context.DeadlineExceeded
			continue
		}
		f.put += int(p.cost)
		f.has[at][p.name()] = true
		if f.wrote != nil {
			f.wrote(p)
		}
	}
	return errs
}

// world is a queue, its storer, and the time.
type world struct {
	now    time.Time
	fleet  *fleet
	queue  *spill.Queue[*piece]
	storer *spill.Storer[*piece]
	gen    int
	mu     sync.Mutex // guards ends and ended
	ends   [8]int
	ended  map[*piece]int
	rescue func(p *piece) bool
}

func newWorld(nodes int, maxBytes int64) *world {
	w := &world{now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), ended: map[*piece]int{}}
	w.fleet = newFleet(nodes, &w.now)
	w.queue = spill.NewQueue(spill.QueueOptions[*piece]{
		MaxBytes: maxBytes, Valid: func(p *piece) bool { return p.gen == w.gen }, Wake: func() {},
		Ended: func(p *piece, why spill.End) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ends[why]++
			w.ended[p]++
		},
	})
	w.storer = spill.NewStorer(spill.Options[*piece]{
		Queue: w.queue, Remote: w.fleet, Timeout: time.Hour, Probes: 1, Logger: slog.New(slog.DiscardHandler),
		Rescue: func(p *piece) bool { return w.rescue != nil && w.rescue(p) },
	})
	return w
}

func (w *world) clock() time.Time { return w.now }

// run lets d pass: turns, and the time between them. It returns early when nothing is left to do.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for range 100_000 {
		wait := w.storer.Turn(context.Background(), w.clock)
		switch {
		case wait < 0 && w.queue.Bytes() == 0:
			return
		case wait < 0 || w.now.Add(wait).After(end):
			w.now = end
			return
		}
		w.now = w.now.Add(wait)
	}
	panic("spill: turns without end")
}

func (w *world) offer(trunk, branch, n int, cost int64) {
	for d := range n {
		p := &piece{trunk: trunk, branch: branch, depth: d, gen: w.gen, cost: cost}
		if w.fleet.there(p) {
			continue
		}
		if w.queue.Offer(p) == spill.Refused {
			return
		}
	}
}

func stored(w *world) (n int) {
	for _, m := range w.fleet.has {
		n += len(m)
	}
	return n
}

func check(t *testing.T, w *world) {
	t.Helper()
	for p, n := range w.ended {
		if n != 1 {
			t.Fatalf("%+v ended %d times", *p, n)
		}
	}
}

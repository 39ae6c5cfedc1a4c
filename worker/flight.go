package worker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/block"
)

// flights knows which blocks are being computed, so that of several requests with one new prefix only the first computes it: the others wait
// until its blocks are hot, and hit. Chain hashes name weights, tenant and cut, so that nobody waits for blocks that it may not use.
type flights struct {
	// patience is how long one may wait without any progress; then it computes what it waited for.
	patience time.Duration

	mu struct {
		sync.Mutex
		computing map[block.Hash]*flight
	}
}

// flight is one request's blocks, from the first that is not hot to the last that others can use.
type flight struct {
	of     *flights
	first  int // index of hashes[0] in the chain
	hashes []block.Hash
	// wanted counts those who wait: while somebody does, blocks are made hot as soon as they are computed. urgent counts the Serving requests among
	// them: for these a Background request goes on.
	wanted, urgent atomic.Int32
	hurry          chan struct{} // receives when urgent grows

	// The remaining fields are guarded by of.mu.
	have    int           // of hashes, available or given up
	changed chan struct{} // closed when have grows
}

func newFlights(patience time.Duration) *flights {
	f := &flights{patience: patience}
	f.mu.computing = map[block.Hash]*flight{}
	return f
}

// join waits for blocks that others compute, and announces those that nobody does. look returns the chain and how many blocks at its front are hot;
// it is called again after each wait. The first usable blocks are what the caller can do something with. join never fails: at worst work is
// done twice. The flight must be landed.
func (f *flights) join(ctx context.Context, p Priority, usable int, look func() (hashes []block.Hash, hot int)) *flight {
	for {
		hashes, hot := look()
		f.mu.Lock()
		other, last := f.deepest(hashes[:min(usable, len(hashes))], hot)
		if other == nil {
			mine := f.announce(hot, hashes[hot:])
			f.mu.Unlock()
			return mine
		}
		f.mu.Unlock()
		if !f.await(ctx, p, other, last) {
			return f.newFlight(0, nil)
		}
	}
}

// deepest finds the last block of the chain that somebody computes, and who does. f.mu is held.
func (f *flights) deepest(hashes []block.Hash, from int) (*flight, block.Hash) {
	for i := len(hashes) - 1; i >= from; i-- {
		if other := f.mu.computing[hashes[i]]; other != nil {
			return other, hashes[i]
		}
	}
	return nil, block.Hash{}
}

// announce makes a flight of hashes, a chain from its index first on, which nobody else computes. f.mu is held.
func (f *flights) announce(first int, hashes []block.Hash) *flight {
	mine := f.newFlight(first, hashes)
	for _, h := range hashes {
		f.mu.computing[h] = mine
	}
	return mine
}

func (f *flights) newFlight(first int, hashes []block.Hash) *flight {
	return &flight{of: f, first: first, hashes: hashes, changed: make(chan struct{}), hurry: make(chan struct{}, 1)}
}

// await waits until other has last, and reports whether to look again: false when patience or ctx has ended.
func (f *flights) await(ctx context.Context, p Priority, other *flight, last block.Hash) bool {
	other.wanted.Add(1)
	defer other.wanted.Add(-1)
	if p == Serving {
		other.urgent.Add(1)
		defer other.urgent.Add(-1)
		select {
		case other.hurry <- struct{}{}:
		default:
		}
	}
	timer := time.NewTimer(f.patience)
	defer timer.Stop()
	for {
		f.mu.Lock()
		over := f.mu.computing[last] != other
		changed := other.changed
		f.mu.Unlock()
		if over {
			return true
		}
		select {
		case <-changed:
			timer.Reset(f.patience)
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// advance tells that the first n blocks of the chain need not be waited for any more.
func (f *flight) advance(n int) {
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	if n = min(n-f.first, len(f.hashes)); n <= f.have {
		return
	}
	for _, h := range f.hashes[f.have:n] {
		if f.of.mu.computing[h] == f {
			delete(f.of.mu.computing, h)
		}
	}
	f.have = n
	close(f.changed)
	f.changed = make(chan struct{})
}

// land ends the flight: whatever it has not computed is free again.
func (f *flight) land() { f.advance(f.first + len(f.hashes)) }

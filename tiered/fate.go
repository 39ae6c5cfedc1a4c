package tiered

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/kvtier/kvtier/block"
)

// fates remembers what became of blocks that this worker has had, so that a miss can say why. It knows as many as fit, the latest; of
// what it has forgotten, and of what only other workers had, a miss is cold. It is safe for concurrent use.
type fates struct {
	ttl time.Duration
	mu  struct {
		sync.Mutex
		lru *simplelru.LRU[block.Hash, fate]
	}
}

type fate struct {
	epoch  block.Epoch
	act    [16]byte
	stored time.Time // zero if it never was
}

func (f fate) of(g *Generation) bool { return f.epoch == g.Epoch && f.act == g.Act }

// fatesKept bounds the memory: about a megabyte.
const fatesKept = 8192

func newFates(ttl time.Duration) *fates {
	f := &fates{ttl: ttl}
	lru, err := simplelru.NewLRU[block.Hash, fate](fatesKept, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	f.mu.lru = lru
	return f
}

// stored notes that e is in the remote tier from now on.
func (f *fates) stored(e *entry, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.lru.Add(e.hash, fate{e.gen.Epoch, e.gen.Act, now})
}

// evicted notes that blocks have left the hot tier for space.
func (f *fates) evicted(blocks []*entry) {
	if len(blocks) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range blocks {
		if old, ok := f.mu.lru.Peek(e.hash); !ok || !old.of(&e.gen) {
			f.mu.lru.Add(e.hash, fate{epoch: e.gen.Epoch, act: e.gen.Act})
		}
	}
}

// of says why a block that was asked for under g is in no tier.
func (f *fates) of(hash block.Hash, g *Generation, now time.Time) Reason {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, ok := f.mu.lru.Peek(hash)
	switch {
	case !ok:
		return MissCold
	case !known.of(g):
		return MissEpoch
	case !known.stored.IsZero() && now.Sub(known.stored) >= f.ttl:
		return MissExpired
	}
	return MissEvicted
}

package tiered

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
)

const (
	// watchPause is how often the remote tier is asked whether it still has what it was given last. After an answer of no it is asked less often
	// until one of yes, up to watchPauseMax: where it evicts what it has just been given, it is only worth so many questions.
	watchPause    = 2 * time.Second
	watchPauseMax = time.Minute
	watchTimeout  = time.Second
	// watchSkips is how many sick nodes a question gets around.
	watchSkips = 8
	// witnessNames is how many values are asked for: so many that each node of a cluster has some of them. Of 24 nodes, one that has lost
	// everything is overlooked once in 200 times, of 12 once in 60,000.
	witnessNames = 128
	// witnessAge is for how long the absence of a value says that the tier has lost it: later it may have been evicted.
	witnessAge = 12 * time.Second
	// canaries are values that are stored for nothing but to be witnesses, when nothing else has been stored for canaryPause: of 12 nodes, one
	// is overlooked once in 250 times.
	canaries    = 64
	canaryPause = 8 * time.Second
	canaryTTL   = time.Minute
)

// witnesses are the names of values that the remote tier had a moment ago. If one of them is gone, the tier has lost what it was given: it was
// flushed, restarted empty, or has gone back to an older state. The absence of what was stored long ago would say less, because a tier may
// evict; so there are canaries where nothing is stored. It is safe for concurrent use.
type witnesses struct {
	mu    sync.Mutex
	gen   Generation
	names [witnessNames]witness
	n     int  // how many there are
	next  int  // the oldest, if all are there
	any   bool // something of gen is believed to be in the remote tier

	// The storer's.
	due    time.Time // when to ask
	pause  time.Duration
	placed time.Time // when canaries were, or were tried to be
	seed   [16]byte  // of their names
	count  uint64    // of canaries
}

// witness is a part of a block.
type witness struct {
	hash block.Hash
	part int
	seen time.Time
}

// add takes in that block h, of so many parts, has been seen in the remote tier.
func (w *witnesses) add(g *Generation, h block.Hash, parts int, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gen != *g {
		w.gen, w.n, w.next = *g, 0, 0
	}
	w.names[w.next] = witness{h, w.next % parts, now}
	w.next = (w.next + 1) % witnessNames
	w.n = min(w.n+1, witnessNames)
	w.any = true
}

// keys returns the names to ask for, for generation g: the young ones, or all if there are none. fresh is how many are young, and any whether
// anything is believed to be there.
func (w *witnesses) keys(g *Generation, now time.Time) (keys []string, fresh int, any bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gen != *g {
		return nil, 0, false
	}
	for _, x := range w.names[:w.n] {
		if now.Sub(x.seen) < witnessAge {
			fresh++
		}
	}
	variant := g.Identity.Variant()
	for _, x := range w.names[:w.n] {
		if fresh == 0 || now.Sub(x.seen) < witnessAge {
			keys = append(keys, block.Key(variant, g.Epoch, x.hash, x.part))
		}
	}
	return keys, fresh, w.any
}

func (w *witnesses) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n, w.next = 0, 0
}

// watchOver asks, when it is due, whether the remote tier still has what it was given last, and returns when to ask again.
func (c *Cache) watchOver() time.Duration {
	w, now := &c.spill.guard, c.now()
	if wait := w.due.Sub(now); wait > 0 {
		return wait
	}
	if c.testify() {
		w.pause = min(max(2*w.pause, watchPause), watchPauseMax)
		c.noticeLoss()
	} else {
		w.pause = watchPause
	}
	w.due = c.now().Add(w.pause)
	return w.pause
}

// testify asks for the witnesses and reports whether one is gone. Those that a sick node may have say nothing. It sees to it that there will be
// witnesses the next time.
func (c *Cache) testify() (lost bool) {
	v := c.View()
	if c.remote == nil || v.Access != AccessShared || !c.admits() {
		return false
	}
	keys, fresh, any := c.spill.guard.keys(&v.Generation, c.now())
	if !any {
		return false
	}
	ctx, cancel := context.WithTimeout(c.ctx, min(watchTimeout, c.opts.SpillTimeout))
	defer cancel()
	if c.gone(ctx, keys) {
		return true
	}
	if fresh < canaries {
		c.placeCanaries(ctx, &v.Generation)
	}
	return false
}

// gone reports whether one of keys is not there.
func (c *Cache) gone(ctx context.Context, keys []string) bool {
	for skips := 0; len(keys) > 0 && skips < watchSkips && ctx.Err() == nil; skips++ {
		n, err := c.remote.Lead(ctx, keys)
		if err == nil {
			return n < len(keys)
		}
		if c.View().Access != AccessShared {
			return false
		}
		keys = keys[min(n+1, len(keys)):]
	}
	return false
}

// placeCanaries stores canaries under g, now and then.
func (c *Cache) placeCanaries(ctx context.Context, g *Generation) {
	w, now := &c.spill.guard, c.now()
	if w.placed.IsZero() {
		w.placed = now // what made them necessary is young itself
	}
	if now.Sub(w.placed) < canaryPause || c.View().Access != AccessShared {
		return
	}
	w.placed = now
	n := canaries
	if c.opts.Steps != nil {
		n = 1 // a simulated tier is small, and has one node
	}
	hashes, items := make([]block.Hash, n), make([]store.Item, n)
	for i := range items {
		hashes[i] = w.canary()
		items[i] = store.Item{Key: block.Key(g.Identity.Variant(), g.Epoch, hashes[i], 0), Value: []byte("canary")}
	}
	err := c.remote.Put(ctx, items, canaryTTL)
	for i, h := range hashes { // if there are none, what was stored last stays the witness: a tier that takes nothing hardly evicts
		if store.ErrorOf(err, i) == nil {
			w.add(g, h, 1, now)
		}
	}
}

// canary returns a new name, which no block has.
func (w *witnesses) canary() (h block.Hash) {
	w.count++
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(w.seed[:], w.count))
	copy(h[:], sum[:])
	return h
}

func (w *witnesses) init(stepped bool) {
	if !stepped { // a simulation repeats itself
		_, _ = rand.Read(w.seed[:]) // never fails
	}
}

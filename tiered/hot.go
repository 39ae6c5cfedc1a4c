package tiered

import (
	"maps"
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/kvtier/kvtier/block"
)

// hot is the tier in the process: the least recently used blocks leave when the bytes exceed the bound. simplelru keeps the
// order; the lock and the bytes are ours, because the library bounds by count only.
type hot struct {
	max int64

	mu struct {
		sync.Mutex
		gen   Generation                 // of every block in lru
		cuts  map[block.Digest]block.Cut // behind which every block in lru was computed; never changed in place
		lru   *simplelru.LRU[block.Hash, *entry]
		bytes int64
		share map[block.Digest]int64 // bytes by tenant
	}
}

// entryOverhead is what a block costs besides its slab: entry, frame slice, list element and map slot, rounded up.
const entryOverhead = 512

func newHot(maxBytes int64) *hot {
	h := &hot{max: maxBytes}
	h.mu.lru, h.mu.share = newLRU(), map[block.Digest]int64{}
	return h
}

func newLRU() *simplelru.LRU[block.Hash, *entry] {
	lru, err := simplelru.NewLRU[block.Hash, *entry](math.MaxInt, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return lru
}

func (e *entry) cost() int64 { return int64(len(e.slab)) + entryOverhead }

// run appends to dst the longest run of hot blocks at the front of hashes, each with a reference for the caller. It touches them from the
// last to the first, so that within a chain the leaves leave before the root.
func (h *hot) run(dst []*entry, g Generation, hashes []block.Hash) []*entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.gen != g {
		return dst
	}
	n := 0
	for n < len(hashes) {
		e, ok := h.mu.lru.Peek(hashes[n])
		if !ok {
			break
		}
		dst = append(dst, e.retain())
		n++
	}
	for i := n - 1; i >= 0; i-- {
		h.mu.lru.Get(hashes[i])
	}
	return dst
}

func (h *hot) contains(g Generation, hash block.Hash) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.gen == g && h.mu.lru.Contains(hash)
}

// insert makes e hot, with a reference of its own, and returns the blocks that had to leave, with theirs. It refuses a block of another
// generation, one of a tenant that was purged meanwhile, one that is hot already, and one larger than the whole tier.
func (h *hot) insert(e *entry) (victims []*entry, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.gen != e.gen || h.mu.cuts[e.ns] != e.cut || h.mu.lru.Contains(e.hash) || e.cost() > h.max {
		return nil, false
	}
	h.mu.lru.Add(e.hash, e.retain())
	h.account(e, e.cost())
	for h.mu.bytes > h.max {
		_, v, _ := h.mu.lru.RemoveOldest()
		h.account(v, -v.cost())
		victims = append(victims, v)
	}
	return victims, true
}

// account adds n bytes to what is held for e's tenant and altogether. mu is held.
func (h *hot) account(e *entry, n int64) {
	h.mu.bytes += n
	if h.mu.share[e.ns] += n; h.mu.share[e.ns] == 0 {
		delete(h.mu.share, e.ns)
	}
}

// purge drops the blocks that were not computed behind cuts, and refuses such blocks from now on. It walks over all hot blocks, a few
// thousand at most; it returns how many were dropped.
func (h *hot) purge(cuts map[block.Digest]block.Cut) int {
	var out []*entry
	h.mu.Lock()
	h.mu.cuts = cuts
	for _, e := range h.mu.lru.Values() {
		if cuts[e.ns] != e.cut {
			h.mu.lru.Remove(e.hash)
			h.account(e, -e.cost())
			out = append(out, e)
		}
	}
	h.mu.Unlock()
	for _, e := range out {
		e.release()
	}
	return len(out)
}

// shares returns the bytes held by tenant.
func (h *hot) shares() map[block.Digest]int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.mu.share)
}

// drop empties the tier and dedicates it to generation g and to what is computed behind cuts. It returns how many blocks were dropped.
func (h *hot) drop(g Generation, cuts map[block.Digest]block.Cut) int {
	h.mu.Lock()
	old := h.mu.lru
	h.mu.lru, h.mu.bytes, h.mu.gen, h.mu.cuts, h.mu.share = newLRU(), 0, g, cuts, map[block.Digest]int64{}
	h.mu.Unlock()
	for _, e := range old.Values() {
		e.release()
	}
	return old.Len()
}

func (h *hot) size() (blocks int, bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.lru.Len(), h.mu.bytes
}

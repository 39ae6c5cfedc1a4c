package tiered

import (
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// hot is the tier in the process: the least recently used blocks leave when the bytes exceed the bound. simplelru keeps the
// order; the lock and the bytes are ours, because the library bounds by count only.
type hot struct {
	max int64

	mu struct {
		sync.Mutex
		gen   Generation // of every block in lru
		lru   *simplelru.LRU[block.Hash, *entry]
		bytes int64
	}
}

// entryOverhead is what a block costs besides its slab: entry, frame slice, list element and map slot, rounded up.
const entryOverhead = 512

func newHot(maxBytes int64) *hot {
	h := &hot{max: maxBytes}
	h.mu.lru = newLRU()
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
// generation, one that is hot already, and one larger than the whole tier.
func (h *hot) insert(e *entry) (victims []*entry, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.gen != e.gen && !mutation.Is(mutation.LateInsert) || h.mu.lru.Contains(e.hash) || e.cost() > h.max {
		return nil, false
	}
	h.mu.lru.Add(e.hash, e.retain())
	h.mu.bytes += e.cost()
	for h.mu.bytes > h.max {
		_, v, _ := h.mu.lru.RemoveOldest()
		h.mu.bytes -= v.cost()
		victims = append(victims, v)
	}
	return victims, true
}

// drop empties the tier and dedicates it to generation g. It returns how many blocks were dropped.
func (h *hot) drop(g Generation) int {
	h.mu.Lock()
	if mutation.Is(mutation.KeepHot) {
		h.mu.gen = g
		h.mu.Unlock()
		return 0
	}
	old := h.mu.lru
	h.mu.lru, h.mu.bytes, h.mu.gen = newLRU(), 0, g
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

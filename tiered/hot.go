package tiered

import (
	"sync"

	"github.com/kvtier/kvtier/block"
)

// hot is the tier in the process: the least recently used blocks leave when the bytes exceed the bound. The order is a ring through the
// entries themselves: a hit is one map look-up, and allocates nothing. One lock covers a walk along a chain, because taking one per block
// would cost more than the walk. Blocks among the youngest eighth are not moved to the front again: walks over what is really hot only
// read, and run side by side.
type hot struct {
	max int64

	mu struct {
		sync.RWMutex
		gen    Generation // of every block in blocks
		blocks map[block.Hash]*entry
		ring   entry  // next is the youngest, prev the oldest
		seq    uint64 // counts links
		bytes  int64
	}
}

// entryOverhead is what a block costs besides its slab: entry, frame slices and map slot, rounded up.
const entryOverhead = 512

func newHot(maxBytes int64) *hot {
	h := &hot{max: maxBytes}
	h.reset(Generation{})
	return h
}

// reset empties the tier without releasing anything. mu is held, or nobody else knows h.
func (h *hot) reset(g Generation) {
	h.mu.blocks, h.mu.bytes, h.mu.gen = map[block.Hash]*entry{}, 0, g
	h.mu.ring.prev, h.mu.ring.next = &h.mu.ring, &h.mu.ring
}

func (e *entry) cost() int64 { return int64(len(e.slab)) + entryOverhead }

// unlink takes e out of the ring.
func (e *entry) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
}

// link makes e the youngest. mu is held.
func (h *hot) link(e *entry) {
	e.prev, e.next = &h.mu.ring, h.mu.ring.next
	e.prev.next, e.next.prev = e, e
	h.mu.seq++
	e.seq = h.mu.seq
}

// run appends to dst the longest run of hot blocks at the front of hashes, each with a reference for the caller. If one of them is not among
// the youngest, it touches all of them, from the last to the first, so that within a chain the leaves leave before the root.
func (h *hot) run(dst []*entry, g *Generation, hashes []block.Hash) []*entry {
	h.mu.RLock()
	if h.mu.gen != *g {
		h.mu.RUnlock()
		return dst
	}
	first := len(dst)
	young := h.mu.seq - min(h.mu.seq, uint64(len(h.mu.blocks)/8))
	old := false
	for i := range hashes {
		e, ok := h.mu.blocks[hashes[i]]
		if !ok {
			break
		}
		dst = append(dst, e.retain())
		old = old || e.seq < young
	}
	h.mu.RUnlock()
	if old {
		h.touch(dst[first:])
	}
	return dst
}

// touch makes chain the youngest, its root last. Blocks that have left the tier meanwhile stay out.
func (h *hot) touch(chain []*entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(chain) - 1; i >= 0; i-- {
		if e := chain[i]; h.mu.blocks[e.hash] == e {
			e.unlink()
			h.link(e)
		}
	}
}

func (h *hot) contains(g Generation, hash block.Hash) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	_, ok := h.mu.blocks[hash]
	return ok && h.mu.gen == g
}

// insert makes e hot, with a reference of its own, and returns the blocks that had to leave, with theirs. It refuses a block of another
// generation, one that is hot already, and one larger than the whole tier.
func (h *hot) insert(e *entry) (victims []*entry, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, there := h.mu.blocks[e.hash]; there || h.mu.gen != e.gen || e.cost() > h.max {
		return nil, false
	}
	h.mu.blocks[e.hash] = e.retain()
	h.link(e)
	h.mu.bytes += e.cost()
	for h.mu.bytes > h.max {
		v := h.mu.ring.prev
		v.unlink()
		v.prev, v.next = nil, nil
		delete(h.mu.blocks, v.hash)
		h.mu.bytes -= v.cost()
		victims = append(victims, v)
	}
	return victims, true
}

// drop empties the tier and dedicates it to generation g. It returns how many blocks were dropped.
func (h *hot) drop(g Generation) int {
	h.mu.Lock()
	old := h.mu.blocks
	h.reset(g)
	h.mu.Unlock()
	for _, e := range old {
		e.release()
	}
	return len(old)
}

func (h *hot) size() (blocks int, bytes int64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.mu.blocks), h.mu.bytes
}

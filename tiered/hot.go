package tiered

import (
	"maps"
	"sync"

	"github.com/kvtier/kvtier/block"
)

// hot is the tier in the process: the least recently used blocks leave when the bytes exceed the bound. golang-lru bounds by count, and puts
// what is new in front of everything: a chain that is put block by block would lose its root first, and with it the use of all others. Here
// a block takes its place behind the one before it in its chain (order). One lock covers a walk along a chain, because taking one per
// block would cost more than the walk. Blocks among the youngest eighth are not moved to the front again: walks over what is really
// hot only look, which changes nothing, and run side by side.
type hot struct {
	max int64

	mu struct {
		sync.RWMutex
		gen    Generation                 // of every block
		cuts   map[block.Digest]block.Cut // behind which every block was computed; never changed in place
		blocks map[block.Hash]*entry
		order  order
		seq    uint64 // counts how often a block became the youngest
		bytes  int64
		share  map[block.Digest]int64 // bytes by tenant
	}
}

// entryOverhead is what a block costs besides its slab: entry, frame slices, list element and map slot, rounded up.
const entryOverhead = 512

func newHot(maxBytes int64) *hot {
	h := &hot{max: maxBytes}
	h.reset(Generation{}, nil)
	return h
}

// reset empties the tier without releasing anything. mu is held, or nobody else knows h.
func (h *hot) reset(g Generation, cuts map[block.Digest]block.Cut) {
	h.mu.blocks, h.mu.bytes, h.mu.gen, h.mu.cuts, h.mu.share = map[block.Hash]*entry{}, 0, g, cuts, map[block.Digest]int64{}
	h.mu.order.reset()
}

func (e *entry) cost() int64 { return int64(len(e.slab)) + entryOverhead }

// run appends to dst the longest run of hot blocks at the front of hashes, each with a reference for the caller. If they are used and one of them is not
// among the youngest, it touches all of them, from the last to the first, so that within a chain the leaves leave before the root.
func (h *hot) run(dst []*entry, g *Generation, hashes []block.Hash, use bool) []*entry {
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
	if use && old {
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
			h.mu.seq++
			h.mu.order.remove(e)
			h.mu.order.insert(e, nil)
			e.seq = h.mu.seq
		}
	}
}

func (h *hot) contains(g Generation, hash block.Hash) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.mu.gen == g && h.mu.blocks[hash] != nil
}

// peek returns a hot block without a reference and without touching it, or nil: for a look at what it says of itself.
func (h *hot) peek(g *Generation, hash block.Hash) *entry {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.mu.gen != *g {
		return nil
	}
	return h.mu.blocks[hash]
}

// ancestors returns, with references, the hot blocks before e in its chain, nearest first, as long as want says so.
func (h *hot) ancestors(e *entry, want func(*entry) bool) (chain []*entry) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for e.depth > 0 && h.mu.gen == e.gen {
		p, ok := h.mu.blocks[e.parent]
		if !ok || !want(p) {
			break
		}
		chain = append(chain, p.retain())
		e = p
	}
	return chain
}

// insert makes e hot, with a reference of its own, and returns the blocks that had to leave, with theirs, which may be e. fetched says that it was
// read, and not computed behind the block before it. It refuses a block of another generation, one of a tenant that was purged meanwhile,
// one that is hot already, and one larger than the whole tier.
func (h *hot) insert(e *entry, fetched bool) (victims []*entry, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.gen != e.gen && !lateInsert() || h.mu.cuts[e.ns] != e.cut || h.mu.blocks[e.hash] != nil || e.cost() > h.max {
		return nil, false
	}
	h.mu.blocks[e.hash] = e.retain()
	switch parent := h.mu.blocks[e.parent]; {
	case e.depth > 0 && parent != nil:
		h.mu.order.insert(e, parent)
		e.seq = parent.seq
	case e.depth > 0 && !fetched: // the one before it has left: it is of no use before all others
		h.mu.order.insert(e, h.mu.order.oldest())
	default: // a root, or read from the back, where the one before it comes next
		h.mu.seq++
		h.mu.order.insert(e, nil)
		e.seq = h.mu.seq
	}
	h.account(e, e.cost())
	for h.mu.bytes > h.max {
		v := h.mu.order.oldest()
		h.remove(v)
		victims = append(victims, v)
	}
	return victims, true
}

// remove takes e out, with the tier's reference. mu is held.
func (h *hot) remove(e *entry) {
	h.mu.order.remove(e)
	delete(h.mu.blocks, e.hash)
	h.account(e, -e.cost())
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
	for _, e := range h.mu.blocks {
		if cuts[e.ns] != e.cut {
			h.remove(e)
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
	if keepHot() {
		h.mu.gen = g
		h.mu.Unlock()
		return 0
	}
	old := h.mu.blocks
	h.reset(g, cuts)
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

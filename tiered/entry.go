package tiered

import (
	"sync/atomic"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/invariants"
)

// entry is one block in memory: its sealed frames, one per part, in one slab. It is shared by counted references: the hot tier,
// the spill queue, every fill and every request that reads it hold one each. The last release returns the slab.
type entry struct {
	scope
	hash   block.Hash
	depth  int        // blocks before it in its chain
	parent block.Hash // the last of them; zero if there is none
	frames [][]byte   // sealed values, one per part
	places [][]byte   // their payloads, slices of frames
	share  atomic.Uint32
	used   atomic.Bool // found hot by a request since it became that
	refs   atomic.Int32
	slabs  *slabs
	slab   []byte

	// In the hot tier, and guarded by hot.mu:
	seq          uint64 // when it, or the block that it lies behind, last became the youngest
	newer, older *entry // see order
}

// Whether a block is in the remote tier, as far as this worker knows. Above queued it is there; the number says how often the remote tier
// had been found to have lost blocks by then, so that it is in doubt after the next time.
const (
	unshared uint32 = iota
	queued
	shared
)

func (e *entry) retain() *entry {
	if n := e.refs.Add(1); invariants.Enabled && n < 2 {
		panic("tiered: block used after its release")
	}
	return e
}

func (e *entry) release() {
	switch n := e.refs.Add(-1); {
	case n == 0:
		slab := e.slab
		e.slab, e.frames, e.places = nil, nil, nil
		e.slabs.put(slab)
	case n < 0:
		panic("tiered: block released twice")
	}
}

// header is what part p of the block says of itself in the store.
func (e *entry) header(p int) codec.Header {
	return codec.Header{Identity: e.gen.Identity, Namespace: e.ns, Epoch: e.gen.Epoch, Act: codec.Act(e.gen.Act[:]), Hash: e.hash, Part: p}
}

func (e *entry) key(p int) string {
	return e.slabs.names.of(&e.gen).Key(e.hash, p)
}

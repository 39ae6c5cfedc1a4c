package tiered

import (
	"sync"
	"sync/atomic"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/store"
)

// entry is one block in memory: its sealed frames, one per part, in one slab. It is shared by counted references: the hot tier,
// the spill queue, every fill and every request that reads it hold one each. The last release returns the slab.
type entry struct {
	gen    Generation
	ns     block.Digest
	cut    block.Cut // purge of the tenant that it was computed behind
	hash   block.Hash
	depth  int      // blocks before it in its chain
	frames [][]byte // sealed values, one per part
	places [][]byte // their payloads, slices of frames
	share  atomic.Int32
	refs   atomic.Int32
	slabs  *slabs
	slab   []byte
}

// Whether a block is in the remote tier, as far as this worker knows.
const (
	unshared int32 = iota
	queued
	shared
)

func (e *entry) retain() *entry {
	e.refs.Add(1)
	return e
}

func (e *entry) release() {
	switch n := e.refs.Add(-1); {
	case n == 0:
		e.slabs.put(e.slab)
		e.slab, e.frames, e.places = nil, nil, nil
	case n < 0:
		panic("tiered: block released twice")
	}
}

// header is what part p of the block says of itself in the store.
func (e *entry) header(p int) codec.Header {
	return codec.Header{Identity: e.gen.Identity, Namespace: e.ns, Epoch: e.gen.Epoch, Hash: e.hash, Part: p}
}

func (e *entry) key(p int) string {
	return block.Key(e.gen.Identity.Variant(), e.gen.Epoch, e.hash, p)
}

// slabs hands out buffers for whole blocks of one format and keeps a few free ones: blocks all have one size, and zeroing fresh
// memory costs more than reading a block over loopback.
type slabs struct {
	format *codec.Format
	room   []int // buffer length of each part: its largest frame and the store's spare bytes
	bytes  int   // slab length, a multiple of the allocator's page
	keep   int   // free slabs kept at most

	mu   sync.Mutex
	free [][]byte
}

// allocPage is the granularity in which Go's allocator rounds large objects (runtime/sizeclasses.go): slabs use all of it, so
// that accounted bytes are allocated bytes.
const allocPage = 8 << 10

func newSlabs(f *codec.Format, keepBytes int64) *slabs {
	s := &slabs{format: f}
	l := f.Layout()
	for i := range l.PartCount() {
		n := (f.MaxFrameBytes(l.Part(i)) + store.Spare + 63) / 64 * 64
		s.room = append(s.room, n)
		s.bytes += n
	}
	s.bytes = (s.bytes + allocPage - 1) / allocPage * allocPage
	s.keep = int(keepBytes / int64(s.bytes))
	return s
}

// get returns a block with one reference and a buffer per part, each as long as a fetch needs.
func (s *slabs) get(g Generation, ns block.Digest, cut block.Cut, h block.Hash, depth int) *entry {
	e := &entry{gen: g, ns: ns, cut: cut, hash: h, depth: depth, slabs: s, frames: make([][]byte, len(s.room)), places: make([][]byte, len(s.room))}
	e.refs.Store(1)
	s.mu.Lock()
	if n := len(s.free); n > 0 {
		e.slab, s.free = s.free[n-1], s.free[:n-1]
	}
	s.mu.Unlock()
	if e.slab == nil {
		e.slab = make([]byte, s.bytes)
	}
	rest := e.slab
	for i, n := range s.room {
		e.frames[i], rest = rest[:n:n], rest[n:]
	}
	return e
}

func (s *slabs) put(slab []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) < s.keep {
		s.free = append(s.free, slab)
	}
}

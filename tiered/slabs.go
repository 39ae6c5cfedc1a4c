package tiered

import (
	"sync"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/invariants"
	"github.com/kvtier/kvtier/store"
)

// slabs hands out buffers for whole blocks of one format. Blocks all have one size, so that memory never fragments, and it lies outside the
// Go heap (docs/decisions/010-slabs.md): a hot tier of gigabytes would otherwise let the collector double the process before it runs.
// Free slabs beyond a few give their pages back to the system.
type slabs struct {
	format *codec.Format
	names  *names
	room   []int // buffer length of each part: its largest frame and the store's spare bytes
	bytes  int   // slab length, a multiple of allocPage
	keep   int   // free slabs that keep their pages

	mu     sync.Mutex
	warm   [][]byte // free, with pages
	cold   [][]byte // free, without
	chunks [][]byte // what was mapped
	live   int      // slabs handed out
	closed bool
}

const (
	// allocPage is what slabs are a multiple of: the system's pages, and what Go's allocator rounds large objects to
	// (runtime/sizeclasses.go), so that accounted bytes are allocated bytes either way.
	allocPage = 8 << 10
	// chunkBytes is how much is mapped at once, if a slab is not larger.
	chunkBytes = 4 << 20
)

// newSlabs returns one that keeps no pages of free slabs. Its names are set before the first get.
func newSlabs(f *codec.Format) *slabs {
	s := &slabs{format: f}
	l := f.Layout()
	for i := range l.PartCount() {
		n := (f.MaxFrameBytes(l.Part(i)) + store.Spare + 63) / 64 * 64
		s.room = append(s.room, n)
		s.bytes += n
	}
	s.bytes = (s.bytes + allocPage - 1) / allocPage * allocPage
	return s
}

// get returns a block with one reference and a buffer per part, each as long as a fetch needs.
func (s *slabs) get(sc scope, h, parent block.Hash, depth int) *entry {
	n := len(s.room)
	views := make([][]byte, 2*n)
	e := &entry{scope: sc, hash: h, parent: parent, depth: depth, slabs: s, frames: views[:n:n], places: views[n:], slab: s.take()}
	e.refs.Store(1)
	rest := e.slab
	for i, n := range s.room {
		e.frames[i], rest = rest[:n:n], rest[n:]
	}
	return e
}

func (s *slabs) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live++
	if n := len(s.warm); n > 0 {
		b := s.warm[n-1]
		s.warm = s.warm[:n-1]
		if !invariants.Poisoned(b) {
			panic("tiered: a released block was written to")
		}
		return b
	}
	if len(s.cold) == 0 {
		n := max(1, chunkBytes/s.bytes)
		chunk := mapMemory(n * s.bytes)
		if chunk == nil {
			return make([]byte, s.bytes)
		}
		s.chunks = append(s.chunks, chunk)
		for i := range n {
			s.cold = append(s.cold, chunk[i*s.bytes:(i+1)*s.bytes:(i+1)*s.bytes])
		}
	}
	n := len(s.cold)
	b := s.cold[n-1]
	s.cold = s.cold[:n-1]
	return b
}

func (s *slabs) put(slab []byte) {
	invariants.Poison(slab)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live--
	if len(s.warm) < s.keep {
		s.warm = append(s.warm, slab)
	} else if len(s.chunks) > 0 {
		discardMemory(slab)
		s.cold = append(s.cold, slab)
	}
	s.unmap()
}

// close gives all memory back once nobody holds a block any more.
func (s *slabs) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.unmap()
}

func (s *slabs) unmap() {
	if !s.closed || s.live > 0 {
		return
	}
	for _, c := range s.chunks {
		unmapMemory(c)
	}
	s.warm, s.cold, s.chunks = nil, nil, nil
}

// held is the memory of blocks in use and of free slabs with pages.
func (s *slabs) held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.live+len(s.warm)) * int64(s.bytes)
}

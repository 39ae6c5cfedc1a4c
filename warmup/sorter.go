package warmup

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// record is what a plan knows of a prompt: where it stands, and its chain.
type record struct {
	place
	priority int
	pin      bool
	hits     int
	tokens   int
	blocks   int    // full ones
	shared   int    // of blocks, those that the record before it in the plan has too
	check    uint64 // hash of the whole chain, to notice a manifest that changes
	chain    []byte // 8 bytes per block; while sorting only
}

// recordBytes is a record without its chain.
const recordBytes = 46

func (r *record) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(r.file))
	b = le.AppendUint64(b, uint64(r.offset))
	b = le.AppendUint64(b, uint64(r.number))
	b = le.AppendUint16(b, uint16(int16(r.priority)))
	b = le.AppendUint32(b, uint32(r.hits))
	b = le.AppendUint32(b, uint32(r.tokens))
	b = le.AppendUint32(b, uint32(r.blocks))
	b = le.AppendUint32(b, uint32(r.shared))
	b = le.AppendUint64(b, r.check)
	pin := uint16(0)
	if r.pin {
		pin = 1
	}
	return le.AppendUint16(b, pin)
}

func (r *record) parse(b []byte) {
	le := binary.LittleEndian
	r.file, r.offset, r.number = int(le.Uint16(b)), int64(le.Uint64(b[2:])), int(le.Uint64(b[10:]))
	r.priority, r.hits, r.tokens = int(int16(le.Uint16(b[18:]))), int(le.Uint32(b[20:])), int(le.Uint32(b[24:]))
	r.blocks, r.shared, r.check, r.pin = int(le.Uint32(b[28:])), int(le.Uint32(b[32:])), le.Uint64(b[36:]), le.Uint16(b[44:]) != 0
}

// compare orders records by chain, a prefix before what goes on from it, and equal ones as they stand in the manifest.
func (r *record) compare(o *record) int {
	if c := bytes.Compare(r.chain, o.chain); c != 0 {
		return c
	}
	if r.file != o.file {
		return r.file - o.file
	}
	return int(r.offset - o.offset)
}

// sorter sorts any number of records with a bounded buffer: full buffers are sorted and become runs on disk, which are merged at the end.
type sorter struct {
	limit int // bytes in memory
	dir   string

	arena []byte
	index []int // where records begin in arena
	runs  []*os.File
}

// maxRuns bounds the files open during the merge, and with limit the size of a job.
const maxRuns = 512

func (s *sorter) add(r *record) error {
	if len(s.arena)+recordBytes+len(r.chain) > s.limit && len(s.index) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	if s.arena == nil {
		s.arena = make([]byte, 0, min(s.limit, 1<<20))
	}
	s.index = append(s.index, len(s.arena))
	s.arena = append(r.append(s.arena), r.chain...)
	return nil
}

func (s *sorter) at(off int) (r record) {
	r.parse(s.arena[off:])
	r.chain = s.arena[off+recordBytes:][:8*r.blocks]
	return r
}

func (s *sorter) sort() {
	slices.SortFunc(s.index, func(a, b int) int {
		x, y := s.at(a), s.at(b)
		return x.compare(&y)
	})
}

func (s *sorter) spill() error {
	if len(s.runs) == maxRuns {
		return fmt.Errorf("warmup: the manifest is larger than %d sorted runs of %d MiB: split it", maxRuns, s.limit>>20)
	}
	s.sort()
	f, err := scratchFile(s.dir)
	if err != nil {
		return err
	}
	s.runs = append(s.runs, f)
	w := bufio.NewWriterSize(f, 256<<10)
	for _, off := range s.index {
		r := s.at(off)
		if _, err := w.Write(s.arena[off : off+recordBytes+len(r.chain)]); err != nil {
			return err
		}
	}
	s.arena, s.index = s.arena[:0], s.index[:0]
	return w.Flush()
}

// merge calls fn with every record in order; the record and its chain are valid during the call.
func (s *sorter) merge(fn func(*record) error) error {
	s.sort()
	if len(s.runs) == 0 {
		for _, off := range s.index {
			r := s.at(off)
			if err := fn(&r); err != nil {
				return err
			}
		}
		return nil
	}
	if len(s.index) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.arena, s.index = nil, nil
	var h cursors
	for _, f := range s.runs {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		c := &cursor{in: bufio.NewReaderSize(f, 64<<10)}
		if err := c.next(); err != nil {
			return err
		}
		h = append(h, c)
	}
	heap.Init(&h)
	for len(h) > 0 {
		c := h[0]
		if err := fn(&c.rec); err != nil {
			return err
		}
		switch err := c.next(); {
		case errors.Is(err, io.EOF):
			heap.Pop(&h)
		case err != nil:
			return err
		default:
			heap.Fix(&h, 0)
		}
	}
	return nil
}

func (s *sorter) close() {
	for _, f := range s.runs {
		_ = f.Close()
	}
	s.runs, s.arena, s.index = nil, nil, nil
}

// cursor reads a run.
type cursor struct {
	in    *bufio.Reader
	rec   record
	head  [recordBytes]byte
	chain []byte
}

func (c *cursor) next() error {
	if _, err := io.ReadFull(c.in, c.head[:]); err != nil {
		return err
	}
	c.rec.parse(c.head[:])
	if n := 8 * c.rec.blocks; cap(c.chain) < n {
		c.chain = make([]byte, n)
	}
	c.chain = c.chain[:8*c.rec.blocks]
	if _, err := io.ReadFull(c.in, c.chain); err != nil {
		return fmt.Errorf("warmup: sorted run: %w", err)
	}
	c.rec.chain = c.chain
	return nil
}

type cursors []*cursor

func (h cursors) Len() int           { return len(h) }
func (h cursors) Less(i, j int) bool { return h[i].rec.compare(&h[j].rec) < 0 }
func (h cursors) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(x any)        { *h = append(*h, x.(*cursor)) }
func (h *cursors) Pop() any {
	old := *h
	c := old[len(old)-1]
	*h = old[:len(old)-1]
	return c
}

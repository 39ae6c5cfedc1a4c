package llamacpp

import (
	"fmt"

	"github.com/kvtier/kvtier/block"
)

// imports is the K/V that was brought to a sequence: copies of blocks, by position.
type imports struct {
	layout block.Layout
	blocks map[int]*imported
}

type imported struct {
	kv      []byte // the block's payload
	have    []bool // parts
	missing int
}

func (m *imports) put(pos int, p block.Part, kv []byte) {
	b := m.blocks[pos]
	if b == nil {
		n := m.layout.PartCount()
		b = &imported{kv: make([]byte, m.layout.BlockBytes()), have: make([]bool, n), missing: n}
		if m.blocks == nil {
			m.blocks = map[int]*imported{}
		}
		m.blocks[pos] = b
	}
	if !b.have[p.Index] {
		b.have[p.Index] = true
		b.missing--
	}
	copy(b.kv[p.Offset:], kv)
}

// at returns a complete block that covers a position, and where it begins.
func (m *imports) at(pos int) (*imported, int) {
	for start := pos; start > pos-m.layout.BlockTokens && start >= 0; start-- {
		if b := m.blocks[start]; b != nil && b.missing == 0 {
			return b, start
		}
	}
	return nil, 0
}

// until returns the first position from lo to hi-1 that no complete block covers, hi if there is none.
func (m *imports) until(lo, hi int) int {
	for lo < hi {
		b, start := m.at(lo)
		if b == nil {
			return lo
		}
		lo = start + m.layout.BlockTokens
	}
	return hi
}

// readRows fills dst with K (which = 0) or V (1) of one layer from position pos on.
func (m *imports) readRows(layer, which, pos int, dst []byte) error {
	n, row := m.layout.BlockTokens, m.layout.RowBytes()
	for len(dst) > 0 {
		b, start := m.at(pos)
		if b == nil {
			return fmt.Errorf("llamacpp: position %d was not imported", pos)
		}
		plane := b.kv[(layer*2+which)*n*row:][:n*row]
		k := copy(dst, plane[(pos-start)*row:])
		dst, pos = dst[k:], start+n
	}
	return nil
}

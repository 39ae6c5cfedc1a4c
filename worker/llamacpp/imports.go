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
	parts   [][]byte
	missing int
}

func (m *imports) put(pos int, p block.Part, kv []byte) {
	b := m.blocks[pos]
	if b == nil {
		b = &imported{parts: make([][]byte, m.layout.PartCount()), missing: m.layout.PartCount()}
		if m.blocks == nil {
			m.blocks = map[int]*imported{}
		}
		m.blocks[pos] = b
	}
	if b.parts[p.Index] == nil {
		b.missing--
	}
	b.parts[p.Index] = append(b.parts[p.Index][:0], kv...)
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
	row := m.layout.KVHeads * m.layout.HeadDim * m.layout.DType.Size()
	n := m.layout.BlockTokens
	part := m.layout.Part(0)
	for layer >= part.FirstLayer+part.Layers {
		part = m.layout.Part(part.Index + 1)
	}
	for len(dst) > 0 {
		b, start := m.at(pos)
		if b == nil {
			return fmt.Errorf("llamacpp: position %d was not imported", pos)
		}
		plane := b.parts[part.Index][((layer-part.FirstLayer)*2+which)*n*row:][:n*row]
		k := copy(dst, plane[(pos-start)*row:])
		dst, pos = dst[k:], start+n
	}
	return nil
}

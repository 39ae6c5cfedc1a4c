package block

import (
	"iter"
	"math/bits"
	"slices"
)

// Part is a contiguous slice of a block's payload: the unit that is stored under one key. Engines import and export K/V part by part.
type Part struct {
	Index  int // 0-based position among the layout's parts
	Offset int // of the first byte in the block's payload
	Bytes  int
}

// End is the offset behind the last byte.
func (p Part) End() int { return p.Offset + p.Bytes }

// Servers with jemalloc before 5.3.1 (Redis 7 and 8) charge for a value the smallest of the sizes 2^k × {1, 1.25, 1.5, 1.75} that it fits
// with some bytes of their own. A payload of a power of two just misses one, and is charged a quarter more.
const (
	// MinCutBytes is the smallest payload that is cut: below, a second round of bookkeeping costs more than memory.
	MinCutBytes = 256 << 10
	// MaxPartBytes is the largest part: between 256 KiB and 4 MiB throughput is flat, and servers with jemalloc 5.3.0 lose half of
	// theirs from 7 MiB on (docs/decisions/002-parts.md).
	MaxPartBytes = maxClass - valueRoom

	minClass, maxClass = 256 << 10, 2560 << 10
	// valueRoom is what a value may have besides its part of the payload: header, metadata, the server's own bytes.
	valueRoom = 1 << 10
	// quantGranule is where quantised blocks may be cut.
	quantGranule = 64
)

// cut is how a block is divided: count parts of bytes each, and one of what is left, which may be nothing.
type cut struct{ count, bytes, rest int }

func (c cut) parts() int {
	if c.rest > 0 {
		return c.count + 1
	}
	return c.count
}

// cut is part of the wire format. It takes the fewest parts for which the server's memory is at most a twenty-fifth more than the payload;
// among those with as few, and where there are none, those that need the least memory, and of these the smaller. All parts but the
// last are alike and end between two rows.
func (l Layout) cut() cut {
	total, granule := l.BlockBytes(), quantGranule
	if l.Quant == QuantNone {
		granule = l.RowBytes()
	}
	whole := cut{count: 1, bytes: total}
	if total < MinCutBytes || total <= granule {
		return whole
	}
	best, bestRank := whole, rank{}
	for class := minClass; class <= maxClass; class = nextClass(class) {
		n := (class - valueRoom) / granule * granule
		if n == 0 {
			continue
		}
		c := cut{count: total / n, bytes: n, rest: total % n}
		charged := c.count * class
		if c.rest > 0 {
			charged += classOf(c.rest + valueRoom)
		}
		r := rank{0, c.parts(), charged}
		if charged > total/25*26 {
			r = rank{1, charged, c.parts()}
		}
		if bestRank == (rank{}) || slices.Compare(r[:], bestRank[:]) < 0 {
			best, bestRank = c, r
		}
	}
	return best
}

// rank orders cuts: the smaller is the better.
type rank [3]int

// nextClass is the size class above class.
func nextClass(class int) int { return class + 1<<(bits.Len(uint(class))-3) }

// classOf is the smallest size class of at least n bytes, of which there are more than 4.
func classOf(n int) int {
	step := 1 << (bits.Len(uint(n-1)) - 3) // between a power of two and the next are four classes
	return (n + step - 1) / step * step
}

// PartCount is the number of parts of a block.
func (l Layout) PartCount() int { return l.cut().parts() }

// Part returns the i-th part, from 0 to PartCount()-1.
func (l Layout) Part(i int) Part { return l.cut().part(i) }

func (c cut) part(i int) Part {
	p := Part{Index: i, Offset: i * c.bytes, Bytes: c.bytes}
	if i == c.count {
		p.Bytes = c.rest
	}
	return p
}

// Parts returns all parts of a block, in the order of their offsets. They cover it exactly.
func (l Layout) Parts() []Part {
	c := l.cut()
	parts := make([]Part, c.parts())
	for i := range parts {
		parts[i] = c.part(i)
	}
	return parts
}

// PartBytes is the payload of p, in bytes.
func (l Layout) PartBytes(p Part) int { return p.Bytes }

// Charged is what a block needs in a server whose allocator has size classes as those of jemalloc before 5.3.1, in bytes, without its keys.
func (l Layout) Charged() int {
	sum := 0
	for _, p := range l.Parts() {
		sum += classOf(p.Bytes + typicalOverhead)
	}
	return sum
}

// typicalOverhead is what most values have besides payload: header and metadata of 320 bytes, and 10 of the server.
const typicalOverhead = 330

// Rows are K (Which = 0) or V (1) of consecutive tokens in one layer: what engines move of a part at once.
type Rows struct {
	Layer, Which int
	Token, Count int // of the block
	Offset       int // in the part's payload, where they have Count × RowBytes
}

// Rows yields what lies in p, a part of a block without quantisation, in the order of the payload. Parts begin and end between rows, not
// between layers.
func (l Layout) Rows(p Part) iter.Seq[Rows] {
	return func(yield func(Rows) bool) {
		row := l.RowBytes()
		for at, end := p.Offset/row, p.End()/row; at < end; {
			plane, token := at/l.BlockTokens, at%l.BlockTokens
			n := min(l.BlockTokens-token, end-at)
			if !yield(Rows{Layer: plane / 2, Which: plane % 2, Token: token, Count: n, Offset: at*row - p.Offset}) {
				return
			}
			at += n
		}
	}
}

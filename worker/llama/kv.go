package llama

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/half"
	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

// span holds K and V of kernel.Span consecutive positions: [layer][K, V][KV head][head dim][position] as float32, every
// value one that binary16 can hold. Positions are innermost because attention runs along them.
type span struct {
	kv []float32
	// imported has a bit per position for each layer's keys and values: [layer][K, V][Span/64].
	imported []uint64
}

const spanWords = kernel.Span / 64

// kvStore is the K and V of one sequence. Memory is taken by the span, as positions are written.
type kvStore struct {
	layout block.Layout
	spans  []*span // nil where nothing has been written
	take   func() *span
}

// at returns the span of a position, making it if necessary.
func (s *kvStore) at(pos int) *span {
	i := pos / kernel.Span
	for len(s.spans) <= i {
		s.spans = append(s.spans, nil)
	}
	if s.spans[i] == nil {
		s.spans[i] = s.take()
	}
	return s.spans[i]
}

// reserve makes the spans of positions lo to hi-1, so that computing them concurrently allocates nothing.
func (s *kvStore) reserve(lo, hi int) {
	for i := lo / kernel.Span; i*kernel.Span < hi; i++ {
		s.at(i * kernel.Span)
	}
}

// plane is the [headDim][Span] keys (which = 0) or values (1) of one head in span i.
func (s *kvStore) plane(i, layer, which, head int) []float32 {
	n := s.layout.HeadDim * kernel.Span
	at := ((layer*2+which)*s.layout.KVHeads + head) * n
	return s.spans[i].kv[at : at+n]
}

// put stores token rows of K or V for positions pos onward, rounded to binary16. rows is [tokens][stride], the values of
// all heads at offset in each row.
func (s *kvStore) put(pos, tokens, layer, which int, rows []float32, stride, offset int) {
	width := s.layout.KVHeads * s.layout.HeadDim
	for tokens > 0 {
		col := pos % kernel.Span
		n := min(tokens, kernel.Span-col)
		at := (layer*2 + which) * width * kernel.Span
		kv := s.spans[pos/kernel.Span].kv[at : at+width*kernel.Span]
		for d := range width {
			dst := kv[d*kernel.Span+col:][:n]
			for t := range dst {
				dst[t] = half.Round(rows[t*stride+offset+d])
			}
		}
		rows, pos, tokens = rows[n*stride:], pos+n, tokens-n
	}
}

// write stores one part of a block that begins at pos, leaving positions below keep alone.
func (s *kvStore) write(pos int, p block.Part, keep int, src []byte) {
	width := s.layout.KVHeads * s.layout.HeadDim
	for r := range s.layout.Rows(p) {
		plane, in := r.Layer*2+r.Which, src[r.Offset:]
		for from, end := pos+r.Token, pos+r.Token+r.Count; from < end; {
			col := from % kernel.Span
			n := min(end-from, kernel.Span-col)
			sp := s.at(from)
			skip := min(max(0, keep-from), n)
			kv := sp.kv[plane*width*kernel.Span:][:width*kernel.Span]
			for d := range width {
				dst := kv[d*kernel.Span+col:][:n]
				at := (skip*width + d) * 2
				for i := skip; i < n; i++ {
					dst[i] = half.ToFloat32(binary.LittleEndian.Uint16(in[at:]))
					at += 2 * width
				}
			}
			for i := col + skip; i < col+n; i++ {
				sp.imported[plane*spanWords+i/64] |= 1 << (i % 64)
			}
			in, from = in[n*width*2:], from+n
		}
	}
}

// read is the inverse of write.
func (s *kvStore) read(pos int, p block.Part, dst []byte) {
	width := s.layout.KVHeads * s.layout.HeadDim
	for r := range s.layout.Rows(p) {
		plane, out := r.Layer*2+r.Which, dst[r.Offset:]
		for from, end := pos+r.Token, pos+r.Token+r.Count; from < end; {
			col := from % kernel.Span
			n := min(end-from, kernel.Span-col)
			kv := s.spans[from/kernel.Span].kv[plane*width*kernel.Span:][:width*kernel.Span]
			for d := range width {
				at := d * 2
				for _, v := range kv[d*kernel.Span+col:][:n] {
					binary.LittleEndian.PutUint16(out[at:], half.FromFloat32(v))
					at += 2 * width
				}
			}
			out, from = out[n*width*2:], from+n
		}
	}
}

// firstMissing is the first position from lo to hi-1 of which some layer's keys or values were not imported; ok if there is none.
func (s *kvStore) firstMissing(lo, hi int) (pos int, ok bool) {
	for pos := lo; pos < hi; {
		i, word := pos/kernel.Span, pos%kernel.Span/64
		if i >= len(s.spans) || s.spans[i] == nil {
			return pos, false
		}
		have := ^uint64(0)
		for plane := range 2 * s.layout.Layers {
			have &= s.spans[i].imported[plane*spanWords+word]
		}
		end := min(hi, pos/64*64+64)
		if n := bits.TrailingZeros64(^(have >> (pos % 64))); n < end-pos {
			return pos + n, false
		}
		pos = end
	}
	return 0, true
}

// checkPart refuses a part that is not one of the layout's, or bytes that are not as many as it has.
func (s *kvStore) checkPart(op string, p block.Part, bytes int) error {
	if n := s.layout.PartCount(); p.Index < 0 || p.Index >= n || s.layout.Part(p.Index) != p {
		return fmt.Errorf("llama: %s: part %d with bytes %d to %d is not one of the layout's %d parts", op, p.Index, p.Offset, p.End(), n)
	}
	if bytes != p.Bytes {
		return fmt.Errorf("llama: %s: part %d has %d bytes, want %d", op, p.Index, bytes, p.Bytes)
	}
	return nil
}

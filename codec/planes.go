package codec

import (
	"encoding/binary"
	"errors"

	"github.com/klauspost/compress/huff0"
)

// The lossless encoding. A float16 or bfloat16, rotated left by one bit, has its exponent in the upper byte (a float16 also three bits of
// mantissa), and mantissa and sign in the lower. The upper bytes of a layer's keys, or of its values, are few distinct ones and shrink to
// a third under a Huffman code of their own; the lower ones are noise and are stored as they are. Stored, for each run of at most
// planeRun elements that does not cross from keys to values or into another layer, little-endian:
//
//	4  length of the upper bytes as stored: as long as the run means plain, 1 means all equal, else Huffman code (huff0, four streams,
//	   with its table in front)
//	…  upper bytes
//	…  lower bytes, as many as the run has elements
const planeRun = huff0.BlockSizeMax

// planes are the keys, or the values, of one layer each, in a payload that may begin and end within one.
type planes struct{ bytes, first int }

// next cuts off what is left of the first of them.
func (p *planes) next(payload []byte) (plane, rest []byte) {
	n := min(p.first, len(payload))
	p.first = p.bytes
	return payload[:n], payload[n:]
}

// Scratch is memory that encoding and decoding use again. The zero value is ready. It is for one goroutine.
type Scratch struct {
	enc, dec *huff0.Scratch
	upper    []byte
	lower    []byte
	coded    []byte // a payload as it was stored, while it is decoded in its place
}

func (s *Scratch) uppers(n int) []byte {
	if cap(s.upper) < n {
		s.upper = make([]byte, n)
	}
	return s.upper[:n:n] // the decoder takes the capacity for the length
}

// encodePlanes appends payload, which has the given planes, to dst. It gives up as soon as dst would be longer than limit.
func (s *Scratch) encodePlanes(dst, payload []byte, p planes, limit int) ([]byte, bool) {
	if s.enc == nil {
		s.enc = &huff0.Scratch{Reuse: huff0.ReusePolicyNone} // a table per run: deterministic, and runs decode on their own
	}
	for len(payload) > 0 {
		var rest []byte
		rest, payload = p.next(payload)
		for len(rest) > 0 {
			n := min(len(rest)/2, planeRun)
			at := len(dst)
			if at+4+2*n > limit+n { // the upper bytes need some room at least
				return dst, false
			}
			upper := s.uppers(n)
			lower := s.lowers(n)
			split(upper, lower, rest[:2*n])
			rest = rest[2*n:]
			dst = append(dst, 0, 0, 0, 0)
			out, _, err := huff0.Compress4X(upper, s.enc)
			switch {
			case errors.Is(err, huff0.ErrUseRLE):
				out = upper[:1]
			case err != nil || len(out) >= n:
				out = upper
			}
			if n == 1 {
				out = upper
			}
			binary.LittleEndian.PutUint32(dst[at:], uint32(len(out)))
			dst = append(append(dst, out...), lower...)
			if len(dst) > limit {
				return dst, false
			}
		}
	}
	return dst, true
}

func (s *Scratch) lowers(n int) []byte {
	if cap(s.lower) < n {
		s.lower = make([]byte, n)
	}
	return s.lower[:n]
}

var errPlanes = errors.New("malformed planes")

// decodePlanes is the inverse: it fills dst exactly from src, whatever src is, or fails.
func (s *Scratch) decodePlanes(dst, src []byte, p planes) error {
	for len(dst) > 0 {
		var rest []byte
		rest, dst = p.next(dst)
		for len(rest) > 0 {
			n := min(len(rest)/2, planeRun)
			if len(src) < 4 {
				return errPlanes
			}
			k := binary.LittleEndian.Uint32(src)
			src = src[4:]
			if uint64(k)+uint64(n) > uint64(len(src)) || k == 0 || k > uint32(n) {
				return errPlanes
			}
			coded, lower := src[:k], src[k:][:n]
			src = src[int(k)+n:]
			upper := s.uppers(n)
			switch {
			case int(k) == n:
				upper = coded
			case k == 1:
				for i := range upper {
					upper[i] = coded[0]
				}
			default:
				table, body, err := huff0.ReadTable(coded, s.dec)
				if err != nil {
					return errPlanes
				}
				s.dec = table
				table.MaxDecodedSize = n
				got, err := table.Decoder().Decompress4X(upper, body)
				if err != nil || len(got) != n {
					return errPlanes
				}
				upper = got
			}
			join(rest[:2*n], upper, lower)
			rest = rest[2*n:]
		}
	}
	if len(src) != 0 {
		return errPlanes
	}
	return nil
}

const (
	odd  = 0x0001000100010001 // lowest bit of each of four elements
	even = 0x00ff00ff00ff00ff // lower byte of each
)

// split deals the elements of src, rotated left by one bit, into their upper and lower bytes: eight at a time.
func split(upper, lower, src []byte) {
	le := binary.LittleEndian
	for len(src) >= 16 && len(upper) >= 8 && len(lower) >= 8 {
		a, b := rotl(le.Uint64(src)), rotl(le.Uint64(src[8:]))
		le.PutUint64(lower, pack(a&even)|pack(b&even)<<32)
		le.PutUint64(upper, pack(a>>8&even)|pack(b>>8&even)<<32)
		src, upper, lower = src[16:], upper[8:], lower[8:]
	}
	for i := range upper {
		x := le.Uint16(src[2*i:])
		x = x<<1 | x>>15
		upper[i], lower[i] = byte(x>>8), byte(x)
	}
}

// join is the inverse of split.
func join(dst, upper, lower []byte) {
	le := binary.LittleEndian
	for len(dst) >= 16 && len(upper) >= 8 && len(lower) >= 8 {
		u, l := le.Uint64(upper), le.Uint64(lower)
		le.PutUint64(dst, rotr(spread(u&0xffffffff)<<8|spread(l&0xffffffff)))
		le.PutUint64(dst[8:], rotr(spread(u>>32)<<8|spread(l>>32)))
		dst, upper, lower = dst[16:], upper[8:], lower[8:]
	}
	for i := range upper {
		x := uint16(upper[i])<<8 | uint16(lower[i])
		le.PutUint16(dst[2*i:], x>>1|x<<15)
	}
}

func rotl(x uint64) uint64 { return x<<1&^odd | x>>15&odd }

func rotr(x uint64) uint64 { return x>>1&^(odd<<15) | (x&odd)<<15 }

// pack moves the lower bytes of four elements together.
func pack(x uint64) uint64 {
	x = (x | x>>8) & 0x0000ffff0000ffff
	return (x | x>>16) & 0xffffffff
}

// spread is the inverse of pack.
func spread(x uint64) uint64 {
	x = (x | x<<16) & 0x0000ffff0000ffff
	return (x | x<<8) & even
}

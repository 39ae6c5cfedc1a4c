package codec

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/kvtier/kvtier/block"
)

// Encode appends to dst a frame that says the same as frame, which must be sealed, with its payload encoded as e. It reports false, and what
// it returns is of no use, if that would not be smaller. Equal frames give equal bytes.
func (f *Format) Encode(dst, frame []byte, e Encoding, s *Scratch) ([]byte, bool) {
	if !f.Encodes(e) || e == f.native || len(frame) <= f.payloadOffset {
		return dst, false
	}
	start := len(dst)
	dst = append(dst, frame[:f.payloadOffset]...)
	dst, ok := s.encodePlanes(dst, frame[f.payloadOffset:], f.planeBytes(), start+len(frame)-1)
	if !ok {
		return dst, false
	}
	le := binary.LittleEndian
	out := dst[start:]
	out[offEncoding] = byte(e)
	le.PutUint64(out[offStored:], uint64(len(out)-f.payloadOffset))
	le.PutUint64(out[offSum:], xxh3.Hash(out[f.payloadOffset:]))
	le.PutUint32(out[offCRC:], headerCRC(out[:f.payloadOffset]))
	return dst, true
}

// Encodes reports whether payloads of this layout can be encoded as e.
func (f *Format) Encodes(e Encoding) bool {
	return e == f.native || e == Planes && f.native == Raw && f.layout.DType.Size() == 2
}

// planeBytes is the length of the keys, or of the values, of one layer.
func (f *Format) planeBytes() int {
	return f.layout.PartBytes(block.Part{Layers: 1}) / 2
}

// OpenAny is Open for frames of any encoding: what Encode made is decoded in place, into the sealed frame that it was made of, for which buf
// must have FrameBytes of the wanted part. n is the length of the frame in buf, before and after.
func (f *Format) OpenAny(buf []byte, n int, want Header, s *Scratch) (frame, payload []byte, err error) {
	frame = buf[:n]
	if n <= offEncoding || Encoding(frame[offEncoding]) == f.native {
		payload, err = f.Open(frame, want)
		return frame, payload, err
	}
	off, err := f.check(frame, want)
	if err != nil {
		return nil, nil, err
	}
	raw := f.FrameBytes(f.layout.Part(want.Part))
	if len(buf) < raw {
		return nil, nil, fmt.Errorf("codec: open: buffer of %d bytes for a frame of %d", len(buf), raw)
	}
	if cap(s.coded) < n-off {
		s.coded = make([]byte, n-off)
	}
	coded := s.coded[:copy(s.coded[:n-off], frame[off:])]
	frame = buf[:raw]
	if err := s.decodePlanes(frame[f.payloadOffset:], coded, f.planeBytes()); err != nil {
		return nil, nil, corrupt("encoded payload", uint64(len(coded)), uint64(raw-f.payloadOffset))
	}
	if err := f.Seal(frame, want); err != nil {
		return nil, nil, err
	}
	return frame, frame[f.payloadOffset:], nil
}

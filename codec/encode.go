package codec

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"
)

// Encode appends to dst a frame that says the same as frame, with its payload encoded as e. It reports false, and what it returns is of no
// use, if that would not be smaller, or if frame is not one that Seal has made or Open accepted. Its payload is not checked again. Equal
// payloads and identities give equal bytes.
func (f *Format) Encode(dst, frame []byte, e Encoding, s *Scratch) ([]byte, bool) {
	off, err := envelope(frame)
	if err != nil || !f.Encodes(e) || e == f.native || Encoding(frame[offEncoding]) != f.native {
		return dst, false
	}
	h := parse(frame)
	if h.Identity.Layout != f.digest || h.Part >= len(f.parts) || len(frame)-off != f.parts[h.Part].Bytes {
		return dst, false
	}
	start, whole := len(dst), f.FrameBytes(f.parts[h.Part])
	dst = append(dst, make([]byte, f.payloadOffset)...)
	dst, ok := s.encodePlanes(dst, frame[off:], f.planesOf(h.Part), start+whole-1)
	if !ok {
		return dst, false
	}
	out := dst[start:]
	h.put(out, f, e, xxh3.Hash(out[f.payloadOffset:]))
	return dst, true
}

// Encodes reports whether payloads of this layout can be encoded as e.
func (f *Format) Encodes(e Encoding) bool {
	return e == f.native || e == Planes && f.native == Raw && f.layout.DType.Size() == 2
}

// planesOf says where keys and values end in a part.
func (f *Format) planesOf(part int) planes {
	n := f.layout.LayerBytes() / 2
	return planes{bytes: n, first: n - f.parts[part].Offset%n}
}

// OpenAny is Open for frames of any encoding, and turns what it accepts into the very frame that Seal makes of the same payload, in place: what
// Encode made is decoded, and a header that another release wrote in other words becomes ours. So whoever holds the frame afterwards
// need not ask where it came from. buf must have FrameBytes of the wanted part; n is the length of what was fetched into it.
// With an error there is no payload, and frame, if not nil, is what was fetched.
func (f *Format) OpenAny(buf []byte, n int, want Header, s *Scratch) (frame, payload []byte, err error) {
	if n < 0 || n > len(buf) {
		return nil, nil, fmt.Errorf("codec: open: %d bytes fetched into a buffer of %d", n, len(buf))
	}
	off, err := f.check(buf[:n], want)
	if err != nil {
		return buf[:n], nil, err
	}
	part := f.parts[want.Part]
	if len(buf) < f.FrameBytes(part) {
		return nil, nil, fmt.Errorf("codec: open: buffer of %d bytes for a frame of %d", len(buf), f.FrameBytes(part))
	}
	frame = buf[:f.FrameBytes(part)]
	payload = frame[f.payloadOffset:]
	stored, sum := buf[off:n], binary.LittleEndian.Uint64(buf[offSum:])
	if Encoding(buf[offEncoding]) == f.native {
		copy(payload, stored)
	} else {
		if s.coded = append(s.coded[:0], stored...); s.decodePlanes(payload, s.coded, f.planesOf(want.Part)) != nil {
			return nil, nil, corrupt(FieldPayload, uint64(len(stored)), uint64(len(payload)))
		}
		sum = xxh3.Hash(payload)
	}
	want.put(frame, f, f.native, sum)
	return frame, payload, nil
}

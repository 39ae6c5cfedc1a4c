package codec

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// Format encodes and decodes the parts of blocks of one layout. It is immutable and safe for concurrent use.
type Format struct {
	layout        block.Layout
	digest        block.Digest
	parts         []block.Part
	meta          []byte
	payloadOffset int
	native        Encoding // of what Seal makes: Raw, or Int8 where the layout says so
}

// NewFormat prepares the constant parts of every frame of layout, which must be valid.
func NewFormat(layout block.Layout) (*Format, error) {
	if err := layout.Validate(); err != nil {
		return nil, err
	}
	meta, err := encodeMeta(metaOf(layout))
	if err != nil {
		return nil, err
	}
	f := &Format{layout: layout, digest: layout.Digest(), parts: layout.Parts(), meta: meta, payloadOffset: alignedOffset(len(meta))}
	if layout.Quant == block.QuantInt8 {
		f.native = Int8
	}
	return f, nil
}

// Layout returns the layout the format was made for.
func (f *Format) Layout() block.Layout { return f.layout }

// Parts returns the parts of a block, which the caller must not change.
func (f *Format) Parts() []block.Part { return f.parts }

// FrameBytes is the length of a frame of part p.
func (f *Format) FrameBytes(p block.Part) int { return f.payloadOffset + p.Bytes }

// metaSlack lets a reader's buffer hold values whose writer described the layout at greater length.
const metaSlack = 256

// MaxFrameBytes is the largest value a reader has to take for part p: anything longer is not ours.
func (f *Format) MaxFrameBytes(p block.Part) int { return f.FrameBytes(p) + metaSlack }

// Payload returns the place of the payload in frame, which has FrameBytes of some part: K/V is written there before Seal. It is nil in what
// is too short for a frame.
func (f *Format) Payload(frame []byte) []byte {
	if len(frame) < f.payloadOffset {
		return nil
	}
	return frame[f.payloadOffset:]
}

// Seal completes a frame whose payload is in place: header, metadata, checksums. The frame's length must be FrameBytes of part h.Part.
// After Seal the frame must not change any more.
func (f *Format) Seal(frame []byte, h Header) error {
	if h.Part < 0 || h.Part >= len(f.parts) {
		return fmt.Errorf("codec: seal: part %d, layout has %d", h.Part, len(f.parts))
	}
	if want := f.FrameBytes(f.parts[h.Part]); len(frame) != want {
		return fmt.Errorf("codec: seal: frame has %d bytes, want %d", len(frame), want)
	}
	if h.Identity.Layout != f.digest || h.Identity.Weights.IsZero() {
		return fmt.Errorf("codec: seal: identity does not match the layout or names no weights")
	}
	h.put(frame, f, f.native, xxh3.Hash(frame[f.payloadOffset:]))
	return nil
}

// Open checks frame against want and returns its payload, a slice of frame. It fails with ErrCorrupt, ErrVersion or ErrForeign
// (wrapped in *Error) and allocates nothing but that error. A frame whose payload is encoded other than
// Seal does is ErrVersion: OpenAny reads those.
func (f *Format) Open(frame []byte, want Header) ([]byte, error) {
	if len(frame) > offEncoding && frame[offMajor] == Major && frame[offEncoding] != byte(f.native) {
		if _, err := envelope(frame); err != nil {
			return nil, err
		}
		return nil, version(FieldEncoding, uint64(frame[offEncoding]), 0)
	}
	off, err := f.check(frame, want)
	if err != nil {
		return nil, err
	}
	return frame[off:], nil
}

// check checks everything that can be checked without decoding the payload, and returns its offset.
func (f *Format) check(frame []byte, want Header) (int, error) {
	off, err := envelope(frame)
	if err != nil {
		return 0, err
	}
	got := parse(frame)
	switch {
	case mutation.Is(mutation.SkipIdentity):
	case got.Identity.Weights != want.Identity.Weights && !mutation.Is(mutation.SkipWeightsDigest):
		return 0, foreign(FieldWeights)
	case got.Identity.Layout != want.Identity.Layout || got.Identity.Layout != f.digest:
		return 0, foreign(FieldLayout)
	case got.Namespace != want.Namespace:
		return 0, foreign(FieldNamespace)
	case got.Epoch != want.Epoch:
		return 0, foreign(FieldEpoch)
	case got.Act != want.Act && !mutation.Is(mutation.NumberOnly):
		return 0, foreign(FieldAct)
	case got.Hash != want.Hash:
		return 0, foreign(FieldHash)
	case got.Part != want.Part:
		return 0, foreign(FieldPart)
	}
	le := binary.LittleEndian
	if n := int(le.Uint16(frame[offParts:])); n != len(f.parts) {
		return 0, corrupt(FieldParts, uint64(n), uint64(len(f.parts)))
	}
	if n := le.Uint32(frame[offTokens:]); n != uint32(f.layout.BlockTokens) {
		return 0, corrupt(FieldTokens, uint64(n), uint64(f.layout.BlockTokens))
	}
	if want.Part < 0 || want.Part >= len(f.parts) {
		return 0, corrupt(FieldPart, uint64(want.Part), uint64(len(f.parts)))
	}
	part, payload := f.parts[want.Part], frame[off:]
	if at := le.Uint32(frame[offOffset:]); at != uint32(part.Offset) {
		return 0, corrupt(FieldOffset, uint64(at), uint64(part.Offset))
	}
	if Encoding(frame[offEncoding]) == f.native && len(payload) != part.Bytes && !mutation.Is(mutation.TrustStoredLength) {
		return 0, corrupt(FieldPayloadLength, uint64(len(payload)), uint64(part.Bytes))
	}
	if d := le.Uint64(frame[offDecoded:]); d != uint64(part.Bytes) && !mutation.Is(mutation.TrustStoredLength) {
		return 0, corrupt(FieldDecodedLength, d, uint64(part.Bytes))
	}
	if !f.Encodes(Encoding(frame[offEncoding])) {
		return 0, version(FieldEncoding, uint64(frame[offEncoding]), 0)
	}
	if got, want := xxh3.Hash(payload), le.Uint64(frame[offSum:]); got != want && !mutation.Is(mutation.SkipChecksum) {
		return 0, corrupt(FieldPayloadSum, got, want)
	}
	return off, nil
}

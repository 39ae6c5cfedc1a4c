package codec

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/kvtier/kvtier/block"
)

// Wire constants.
const (
	Major = 2
	Minor = 0

	// HeaderBytes is the fixed part in front of the metadata.
	HeaderBytes = 200
	// MaxMetaBytes bounds the metadata.
	MaxMetaBytes = 4096

	payloadAlign = 64 // so that a payload in a page-aligned buffer can be viewed as vectors
)

const (
	offMajor    = 4
	offMinor    = 5
	offFlags    = 6
	offPayload  = 8
	offMetaLen  = 12
	offStored   = 16
	offDecoded  = 24
	offWeights  = 32
	offLayout   = 64
	offNS       = 96
	offHash     = 128
	offEpoch    = 160
	offPart     = 168
	offParts    = 170
	offTokens   = 172
	offEncoding = 176
	offAct      = 177
	offSum      = 184
	offOffset   = 192
	offCRC      = 196
)

var magic = [4]byte{0x8b, 'K', 'V', 'T'}

// Encoding says how a payload is stored. Values are wire format.
type Encoding uint8

// Encodings. A reader decodes all of them; which one a writer uses is its own decision, value by value.
const (
	// Raw stores the payload as the layout describes it.
	Raw Encoding = 0
	// Planes stores 16-bit floats without loss in about two thirds of their bytes.
	Planes Encoding = 1
	// Int8 is what layouts with block.QuantInt8 store, and only they: the one encoding that loses bits. It is made and undone outside of frames
	// (Quantiser), where K/V enters and leaves the engine, so that the hot tier holds it too.
	Int8 Encoding = 2
)

// Lossless reports whether what is read has the bits that were written.
func (e Encoding) Lossless() bool { return e == Raw || e == Planes }

func (e Encoding) String() string {
	switch e {
	case Raw:
		return "raw"
	case Planes:
		return "planes"
	case Int8:
		return "int8"
	}
	return fmt.Sprintf("encoding(%d)", uint8(e))
}

// ParseEncoding is the inverse of String for what a writer may choose.
func ParseEncoding(name string) (Encoding, error) {
	for _, e := range []Encoding{Raw, Planes} {
		if name == e.String() {
			return e, nil
		}
	}
	return Raw, fmt.Errorf("codec: unknown encoding %q, want raw or planes", name)
}

// Act is the first bytes of the activation under which a value was computed. Epoch numbers can be given out twice when Redis loses
// a record; together with the random act they cannot.
type Act [7]byte

// Header is what a value says of itself. A reader states what it expects and gets the payload only on equality.
type Header struct {
	Identity  block.Identity
	Namespace block.Digest
	Epoch     block.Epoch
	Act       Act
	Hash      block.Hash
	Part      int // index among the layout's parts
}

// put writes everything before the payload, which is in place already, is encoded as e and has the given checksum.
func (h *Header) put(frame []byte, f *Format, e Encoding, sum uint64) {
	le := binary.LittleEndian
	clear(frame[:f.payloadOffset])
	copy(frame, magic[:])
	copy(frame[HeaderBytes:], f.meta)
	frame[offMajor], frame[offMinor] = Major, Minor
	le.PutUint32(frame[offPayload:], uint32(f.payloadOffset))
	le.PutUint32(frame[offMetaLen:], uint32(len(f.meta)))
	le.PutUint64(frame[offStored:], uint64(len(frame)-f.payloadOffset))
	le.PutUint64(frame[offDecoded:], uint64(f.parts[h.Part].Bytes))
	copy(frame[offWeights:], h.Identity.Weights[:])
	copy(frame[offLayout:], h.Identity.Layout[:])
	copy(frame[offNS:], h.Namespace[:])
	copy(frame[offHash:], h.Hash[:])
	le.PutUint64(frame[offEpoch:], uint64(h.Epoch))
	le.PutUint16(frame[offPart:], uint16(h.Part))
	le.PutUint16(frame[offParts:], uint16(len(f.parts)))
	le.PutUint32(frame[offTokens:], uint32(f.layout.BlockTokens))
	frame[offEncoding] = byte(e)
	copy(frame[offAct:], h.Act[:])
	le.PutUint64(frame[offSum:], sum)
	le.PutUint32(frame[offOffset:], uint32(f.parts[h.Part].Offset))
	le.PutUint32(frame[offCRC:], headerCRC(frame[:f.payloadOffset]))
}

// parse reads the identity fields; it checks nothing but that they fit in an int.
func parse(frame []byte) Header {
	le := binary.LittleEndian
	var h Header
	copy(h.Identity.Weights[:], frame[offWeights:])
	copy(h.Identity.Layout[:], frame[offLayout:])
	copy(h.Namespace[:], frame[offNS:])
	copy(h.Hash[:], frame[offHash:])
	h.Epoch = block.Epoch(le.Uint64(frame[offEpoch:]))
	h.Act = Act(frame[offAct:])
	h.Part = int(le.Uint16(frame[offPart:]))
	return h
}

// envelope checks everything that does not depend on who reads: magic, version, flags, lengths, header checksum. It returns the
// payload's offset.
func envelope(frame []byte) (payloadOffset int, err error) {
	le := binary.LittleEndian
	if len(frame) < HeaderBytes {
		return 0, corrupt(FieldLength, uint64(len(frame)), HeaderBytes)
	}
	if [4]byte(frame[:4]) != magic {
		return 0, corrupt(FieldMagic, uint64(le.Uint32(frame)), uint64(le.Uint32(magic[:])))
	}
	if frame[offMajor] != Major {
		return 0, version(FieldMajor, uint64(frame[offMajor]), Major)
	}
	off, metaLen := le.Uint32(frame[offPayload:]), le.Uint32(frame[offMetaLen:])
	if metaLen > MaxMetaBytes {
		return 0, corrupt(FieldMetaLength, uint64(metaLen), MaxMetaBytes)
	}
	if want := alignedOffset(int(metaLen)); int64(off) != int64(want) || want > len(frame) {
		return 0, corrupt(FieldPayloadOffset, uint64(off), uint64(want))
	}
	if got, want := headerCRC(frame[:off]), le.Uint32(frame[offCRC:]); got != want {
		return 0, corrupt(FieldHeaderSum, uint64(got), uint64(want))
	}
	// What follows is as the writer meant it: a difference is a newer format, not damage.
	if flags := le.Uint16(frame[offFlags:]); flags != 0 {
		return 0, version(FieldFlags, uint64(flags), 0)
	}
	e := Encoding(frame[offEncoding])
	if e > Int8 {
		return 0, version(FieldEncoding, uint64(e), 0)
	}
	stored, decoded := le.Uint64(frame[offStored:]), le.Uint64(frame[offDecoded:])
	if rest := uint64(len(frame)) - uint64(off); stored != rest {
		return 0, corrupt(FieldPayloadLength, rest, stored)
	}
	if e != Planes && decoded != stored || decoded < stored || decoded > math.MaxInt32 {
		return 0, corrupt(FieldDecodedLength, decoded, stored)
	}
	return int(off), nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func headerCRC(head []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:offCRC], castagnoli), castagnoli, head[HeaderBytes:])
}

func alignedOffset(metaLen int) int {
	return (HeaderBytes + metaLen + payloadAlign - 1) / payloadAlign * payloadAlign
}

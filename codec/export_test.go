package codec

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// Reseal makes lengths and checksums of a frame right for the payload it has now, so that tests reach what is behind them.
func Reseal(frame []byte, payloadOffset int) {
	le := binary.LittleEndian
	le.PutUint64(frame[offStored:], uint64(len(frame)-payloadOffset))
	le.PutUint64(frame[offSum:], xxh3.Hash(frame[payloadOffset:]))
	le.PutUint32(frame[offCRC:], headerCRC(frame[:payloadOffset]))
}

// Described is frame with other metadata, sealed as a release that describes layouts in those words would have.
func Described(frame, meta []byte) []byte {
	le := binary.LittleEndian
	from, off := le.Uint32(frame[offPayload:]), alignedOffset(len(meta))
	out := make([]byte, off, off+len(frame))
	copy(out, frame[:HeaderBytes])
	copy(out[HeaderBytes:], meta)
	out = append(out, frame[from:]...)
	le.PutUint32(out[offPayload:], uint32(off))
	le.PutUint32(out[offMetaLen:], uint32(len(meta)))
	Reseal(out, off)
	return out
}

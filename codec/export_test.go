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

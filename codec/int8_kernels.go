package codec

import (
	"encoding/binary"
	"math"
)

// The inner loops of Quantiser, one for each element type. Rounding is the processor's: adding
// 1.5 × 2^23 leaves the nearest integer, ties to even, in the lowest byte. The product before is exact, so that a processor which fuses
// both gets the same bits.
const toInteger = 12582912

// lanes16 are the sign bits of four two-byte elements.
const lanes16 = 0x8000800080008000

// max16 is the larger of each of four 15-bit numbers.
func max16(a, b uint64) uint64 {
	d := (a | lanes16) - b // in each lane 0x8000 + a - b: none borrows from its neighbour
	mask := d & lanes16
	mask -= mask >> 15 // 0x7fff where a is at least b
	return b + d&mask
}

// raise16 raises each of the magnitudes in most to that of its element in row.
func raise16(most, row []byte) {
	le := binary.LittleEndian
	for len(row) >= 16 && len(most) >= 16 {
		x, y := le.Uint64(row)&^lanes16, le.Uint64(row[8:])&^lanes16
		le.PutUint64(most, max16(le.Uint64(most), x))
		le.PutUint64(most[8:], max16(le.Uint64(most[8:]), y))
		most, row = most[16:], row[16:]
	}
	for i := 0; i+2 <= len(row); i += 2 {
		le.PutUint16(most[i:], max(le.Uint16(most[i:]), le.Uint16(row[i:])&0x7fff))
	}
}

func raise32(most, row []byte) {
	le := binary.LittleEndian
	for i := 0; i+4 <= len(row) && i+4 <= len(most); i += 4 {
		le.PutUint32(most[i:], max(le.Uint32(most[i:]), le.Uint32(row[i:])&^(1<<31)))
	}
}

func largest16(group []byte) (most uint32) {
	le := binary.LittleEndian
	var a, b uint64
	for len(group) >= 16 {
		a, b = max16(a, le.Uint64(group)&^lanes16), max16(b, le.Uint64(group[8:])&^lanes16)
		group = group[16:]
	}
	for a = max16(a, b); a != 0; a >>= 16 {
		most = max(most, uint32(a&0xffff))
	}
	for i := 0; i+2 <= len(group); i += 2 {
		most = max(most, uint32(le.Uint16(group[i:])&0x7fff))
	}
	return most
}

func largest32(group []byte) (most uint32) {
	for i := 0; i+4 <= len(group); i += 4 {
		most = max(most, binary.LittleEndian.Uint32(group[i:])&^(1<<31))
	}
	return most
}

// A binary16 moved to where a float32 has its sign, exponent and mantissa is its value times 2^-112. Bytes are put together here because the
// compiler makes one load or store of them and needs no slice for it.

func quantiseF16(dst, src []byte, factors []float32) {
	src, factors = src[:2*len(dst)], factors[:len(dst)]
	for i := range dst {
		x := int32(uint32(src[2*i])<<16 | uint32(src[2*i+1])<<24)
		dst[i] = toByte(uint32(x>>3)&^0x70000000, factors[i])
	}
}

func quantiseBF16(dst, src []byte, factors []float32) {
	src, factors = src[:2*len(dst)], factors[:len(dst)]
	for i := range dst {
		dst[i] = toByte(uint32(src[2*i])<<16|uint32(src[2*i+1])<<24, factors[i])
	}
}

func quantiseF32(dst, src []byte, factors []float32) {
	factors = factors[:len(dst)]
	for i := range dst {
		dst[i] = toByte(binary.LittleEndian.Uint32(src[4*i:]), factors[i])
	}
}

// toByte rounds the float32 with the given bits, times f, to a signed byte.
func toByte(bits uint32, f float32) byte {
	return byte(math.Float32bits(math.Float32frombits(bits)*f + toInteger))
}

func restoreF16(dst, src []byte, factors []float32) {
	dst, factors = dst[:2*len(src)], factors[:len(src)]
	for i, b := range src {
		x := fromByte(b, factors[i])
		x = x>>13&0x7fff | x>>16&0x8000
		dst[2*i], dst[2*i+1] = byte(x), byte(x>>8)
	}
}

func restoreBF16(dst, src []byte, factors []float32) {
	dst, factors = dst[:2*len(src)], factors[:len(src)]
	for i, b := range src {
		x := fromByte(b, factors[i]) >> 16
		dst[2*i], dst[2*i+1] = byte(x), byte(x>>8)
	}
}

func restoreF32(dst, src []byte, factors []float32) {
	factors = factors[:len(src)]
	for i, b := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], fromByte(b, factors[i]))
	}
}

func fromByte(b byte, f float32) uint32 { return math.Float32bits(float32(int8(b)) * f) }

// clamp16 writes src to dst with no magnitude above limit.
func clamp16(dst, src []byte, limit uint16) {
	for i := 0; i+2 <= len(src); i += 2 {
		x := binary.LittleEndian.Uint16(src[i:])
		binary.LittleEndian.PutUint16(dst[i:], min(x&0x7fff, limit)|x&0x8000)
	}
}

func clamp32(dst, src []byte, limit uint32) {
	for i := 0; i+4 <= len(src); i += 4 {
		x := binary.LittleEndian.Uint32(src[i:])
		binary.LittleEndian.PutUint32(dst[i:], min(x&^(1<<31), limit)|x&(1<<31))
	}
}

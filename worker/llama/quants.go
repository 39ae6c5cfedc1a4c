package llama

import (
	"encoding/binary"

	"github.com/kvtier/kvtier/internal/half"
	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// blockFuncs widen one block of a type whose elements are stored together: small integers behind a binary16 scale, some with a
// scale of their own per sub-block. The product of a scale and an integer is exact in float32, and adding a minimum rounds once, so a
// weight has the same bits on every target, fused or not.
var blockFuncs = map[gguf.DType]func(dst []float32, b []byte){
	gguf.Q4_0: func(dst []float32, b []byte) { halves(dst, b[2:], 0, 8, f16(b), 0) },
	gguf.Q4_1: func(dst []float32, b []byte) { halves(dst, b[4:], 0, 0, f16(b), f16(b[2:])) },
	gguf.Q5_0: func(dst []float32, b []byte) { halves(dst, b[6:], u32(b[2:]), 16, f16(b), 0) },
	gguf.Q5_1: func(dst []float32, b []byte) { halves(dst, b[8:], u32(b[4:]), 0, f16(b), f16(b[2:])) },
	gguf.Q8_0: q8,
	gguf.Q4_K: func(dst []float32, b []byte) { superBlock(dst, b, b[16:], nil) },
	gguf.Q5_K: func(dst []float32, b []byte) { superBlock(dst, b, b[48:], b[16:48]) },
	gguf.Q6_K: q6K,
}

func f16(b []byte) float32 { return half.ToFloat32(binary.LittleEndian.Uint16(b)) }
func u32(b []byte) uint32  { return binary.LittleEndian.Uint32(b) }

// halves widens 32 elements: the low halves of 16 bytes, then the high halves. Bit i of fifth is the highest bit of element i.
// An element stands for (q - zero) × scale + least.
func halves(dst []float32, b []byte, fifth uint32, zero int32, scale, least float32) {
	for i := range 16 {
		lo := int32(b[i]&15) | int32(fifth>>i&1)<<4
		hi := int32(b[i]>>4) | int32(fifth>>(i+16)&1)<<4
		dst[i] = float32(lo-zero)*scale + least
		dst[i+16] = float32(hi-zero)*scale + least
	}
}

// q8 widens 32 bytes with a sign behind one scale.
func q8(dst []float32, b []byte) {
	scale := f16(b)
	for i, q := range b[2:34] {
		dst[i] = float32(int8(q)) * scale
	}
}

// superBlock widens Q4_K and Q5_K: 256 elements in 8 sub-blocks of 32. b begins with the scale of the scales and that of the
// minima, then 12 bytes hold 8 six-bit scales and 8 six-bit minima. Each 32 bytes of low hold two sub-blocks, in their low halves and in their
// high halves. Bit s of byte i of fifth, if there is one, is the highest bit of element i of sub-block s.
func superBlock(dst []float32, b, low, fifth []byte) {
	scale, least := f16(b), f16(b[2:])
	for s := range 8 {
		sc, m := sixBits(b[4:16], s)
		d, off := scale*float32(sc), least*float32(m)
		shift := 4 * (s % 2)
		for i, v := range low[s/2*32:][:32] {
			q := v >> shift & 15
			if fifth != nil {
				q |= fifth[i] >> s & 1 << 4
			}
			dst[s*32+i] = d*float32(q) - off
		}
	}
}

// sixBits is the scale and the minimum of a sub-block. The first four lie in the low six bits of bytes 0 to 3 and 4 to 7; of the
// others, four bits share bytes 8 to 11, and the two highest fill up the bytes of the first.
func sixBits(b []byte, s int) (scale, least byte) {
	if s < 4 {
		return b[s] & 63, b[s+4] & 63
	}
	return b[s+4]&15 | b[s-4]>>6<<4, b[s+4]>>4 | b[s]>>6<<4
}

// q6K widens 256 elements in two halves: 64 bytes with the low four bits, 32 with the high two, and a scale with a sign for each 16
// elements. A half's four runs of 32 elements take the low halves of the 64 bytes, then the high halves; their two high
// bits lie in ascending pairs of the same 32 bytes.
func q6K(dst []float32, b []byte) {
	scale := f16(b[208:])
	for h := range 2 {
		low, high, scales := b[h*64:][:64], b[128+h*32:][:32], b[192+h*8:][:8]
		for run := range 4 {
			for i := range 32 {
				q := low[run%2*32+i]>>(run/2*4)&15 | high[i]>>(run*2)&3<<4
				d := scale * float32(int8(scales[run*2+i/16]))
				dst[h*128+run*32+i] = d * float32(int32(q)-32)
			}
		}
	}
}

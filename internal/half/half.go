// Package half converts between float32 and IEEE 754 binary16, exactly and for every bit pattern.
//
// Why not the processor's instruction or a library: both turn signalling NaNs into quiet ones. A block of K/V is opaque
// bytes to the cache, and exporting what was imported must give back the same bytes, whatever they are. Invariants:
//
//   - widening is exact, and narrowing a widened value gives back its 16 bits, NaN payloads included;
//   - narrowing rounds to nearest, ties to even, as F16C and NEON do; it overflows to infinity.
package half

import "math"

const (
	rebias    = (127 - 15) << 23 // what the exponent of binary32 is ahead of that of binary16
	minNormal = 0x0400           // 2⁻¹⁴ in binary16
	infinity  = 0x7c00           // in binary16

	minNormal32 = (127 - 14) << 23 // 2⁻¹⁴ in binary32
	overflow32  = 0x477ff000       // 65520: halfway to 2¹⁶, rounds to infinity
	infinity32  = 0x7f800000
)

// ToFloat32 widens the binary16 value with bits h. Here and in FromFloat32 only normal numbers are handled in line.
func ToFloat32(h uint16) float32 {
	if m := uint32(h & 0x7fff); m-minNormal < infinity-minNormal {
		return math.Float32frombits(uint32(h&0x8000)<<16 | (m<<13 + rebias))
	}
	return widenOther(h)
}

func widenOther(h uint16) float32 {
	sign, magnitude := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	if magnitude >= infinity {
		return math.Float32frombits(sign | infinity32 | (magnitude&0x3ff)<<13)
	}
	// Subnormal: magnitude × 2⁻²⁴, exact in binary32.
	return math.Float32frombits(sign | math.Float32bits(float32(magnitude)*0x1p-24))
}

// FromFloat32 narrows f to binary16.
func FromFloat32(f float32) uint16 {
	b := math.Float32bits(f)
	if m := b & 0x7fffffff; m-minNormal32 < overflow32-minNormal32 {
		return uint16(b>>16&0x8000) | uint16((m-rebias+0xfff+m>>13&1)>>13)
	}
	return narrowOther(b)
}

func narrowOther(b uint32) uint16 {
	sign := uint16(b>>16) & 0x8000
	b &= 0x7fffffff
	switch {
	case b < minNormal32:
		// Adding 0.5 puts the last bit of a binary16 subnormal (2⁻²⁴) at the last bit of binary32: the addition rounds.
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5))
	case b <= infinity32:
		return sign | infinity
	}
	payload := uint16(b>>13) & 0x3ff
	if payload == 0 {
		payload = 0x200 // the payload is only in bits that get lost: stay a NaN
	}
	return sign | infinity | payload
}

// Round is f rounded to binary16 and widened again.
func Round(f float32) float32 { return ToFloat32(FromFloat32(f)) }

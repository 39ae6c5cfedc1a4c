package llamatest

import (
	"encoding/binary"
	"math"

	"github.com/kvtier/kvtier/internal/half"
)

// The writers here follow the description of the block formats from the side of whoever packs them, element by element, and share
// nothing with the reader. They choose scales in the plainest way: they make test models, not good ones.

// bits collects small integers as bytes: put sets a field of an element, wherever the format keeps it.
type bits []byte

func (b bits) put(i, shift int, v int) { b[i] |= byte(v << shift) }

func clamp(v float64, lo, hi int) int { return max(lo, min(hi, int(math.RoundToEven(v)))) }

func spread(v []float32) (lo, hi float64) {
	lo, hi = float64(v[0]), float64(v[0])
	for _, x := range v {
		lo, hi = min(lo, float64(x)), max(hi, float64(x))
	}
	return lo, hi
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func binary16(x float64) (bits uint16, value float64) {
	bits = half.FromFloat32(float32(x))
	return bits, float64(half.ToFloat32(bits))
}

// halves packs 32 values as Q4_0, Q4_1, Q5_0 or Q5_1: width bits each, with a minimum or without.
func halves(v, stored []float32, width int, withMin bool) []byte {
	le, top := binary.LittleEndian, 1<<width-1
	lo, hi := spread(v)
	head, zero, least := []byte(nil), 0, 0.0
	var scale float64
	var h uint16
	if withMin {
		h, scale = binary16((hi - lo) / float64(top))
		head = le.AppendUint16(head, h)
		h, least = binary16(lo)
		head = le.AppendUint16(head, h)
	} else {
		zero = (top + 1) / 2
		h, scale = binary16(max(hi, -lo) / float64(zero-1))
		head = le.AppendUint16(head, h)
	}
	low, fifth := make(bits, 16), make(bits, 4)
	for i, x := range v {
		q := clamp(ratio(float64(x)-least, scale)+float64(zero), 0, top)
		low.put(i%16, i/16*4, q&15)
		fifth.put(i/8, i%8, q>>4)
		stored[i] = float32(float64(q-zero)*scale + least)
	}
	if width == 5 {
		head = append(head, fifth...)
	}
	return append(head, low...)
}

// superBlock packs 256 values as Q4_K or Q5_K.
func superBlock(v, stored []float32, width int) []byte {
	top := 1<<width - 1
	var scales, mins [8]float64
	for s := range scales {
		lo, hi := spread(v[s*32 : s*32+32])
		lo = min(lo, 0)
		scales[s], mins[s] = (hi-lo)/float64(top), -lo
	}
	largest := func(x [8]float64) (m float64) {
		for _, v := range x {
			m = max(m, v)
		}
		return m
	}
	d, dv := binary16(largest(scales) / 63)
	m, mv := binary16(largest(mins) / 63)
	packed, high, low := make(bits, 12), make(bits, 32), make(bits, 128)
	for s := range scales {
		sc, mn := clamp(ratio(scales[s], dv), 0, 63), clamp(ratio(mins[s], mv), 0, 63)
		if s < 4 {
			packed.put(s, 0, sc)
			packed.put(s+4, 0, mn)
		} else {
			packed.put(s+4, 0, sc&15)
			packed.put(s+4, 4, mn&15)
			packed.put(s-4, 6, sc>>4)
			packed.put(s, 6, mn>>4)
		}
		for i := range 32 {
			q := clamp(ratio(float64(v[s*32+i])+mv*float64(mn), dv*float64(sc)), 0, top)
			low.put(s/2*32+i, s%2*4, q&15)
			high.put(i, s, q>>4)
			stored[s*32+i] = float32(dv*float64(sc)*float64(q) - mv*float64(mn))
		}
	}
	le := binary.LittleEndian
	data := append(le.AppendUint16(le.AppendUint16(nil, d), m), packed...)
	if width == 5 {
		data = append(data, high...)
	}
	return append(data, low...)
}

// q6K packs 256 values as Q6_K.
func q6K(v, stored []float32) []byte {
	var scales [16]float64
	most := 0.0
	for s := range scales {
		lo, hi := spread(v[s*16 : s*16+16])
		scales[s] = max(hi, -lo) / 31
		if s%3 == 1 {
			scales[s] = -scales[s] // scales have a sign
		}
		most = max(most, math.Abs(scales[s]))
	}
	d, dv := binary16(most / 127)
	low, high, signed := make(bits, 128), make(bits, 64), make(bits, 16)
	for i, x := range v {
		sc := clamp(ratio(scales[i/16], dv), -128, 127)
		signed[i/16] = byte(int8(sc))
		q := clamp(ratio(float64(x), dv*float64(sc)), -32, 31)
		half, run, at := i/128, i/32%4, i%32
		low.put(half*64+run%2*32+at, run/2*4, (q+32)&15)
		high.put(half*32+at, run*2, (q+32)>>4)
		stored[i] = float32(dv * float64(sc) * float64(q))
	}
	return binary.LittleEndian.AppendUint16(append(append(low, high...), signed...), d)
}

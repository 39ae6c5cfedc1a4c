package codec

import (
	"fmt"
	"math"

	"github.com/kvtier/kvtier/block"
)

// The lossy form of block.QuantInt8. A group of values shares a power of two, stored as its exponent plus expBias; a value is a signed byte
// times that. Powers of two, as in the MXINT8 format of the Open Compute Project, cost up to one of the eight bits of precision next to
// free scales, and buy what a cache needs: the exponent is one byte, so that it may stand for as few as 16 tokens; a byte times a power of two
// is exact in each of our element types, so that every machine restores the same bits; and what was restored falls into the same bytes
// again, so that errors do not add up over workers that pass a block on. A group with an infinity or a NaN is stored as nanExponent and
// comes back as NaNs: a model that is broken must not look sound.
const (
	expBias     = 127
	nanExponent = 255
	minExponent = -126 // 2^-126 is the smallest normal float32
	// maxMagnitude is what a group's largest value may become before the next power of two is taken: below what rounds to 128.
	maxMagnitude = 0x7f0000 // mantissa bits of 127.5
)

// element is what the kernels know of an element type. Magnitudes are bits without the sign; shifted left by shift they are a float32 that is
// the value times 2^-bias.
type element struct {
	shift       uint
	bias        int
	infinity    uint32 // smallest magnitude that is not finite
	limit       uint32 // largest magnitude that fits a signed byte times 2^maxExponent
	maxExponent int    // such that 127 × 2^maxExponent is finite
	minExponent int

	raise    func(most, row []byte)
	largest  func(group []byte) uint32
	quantise func(dst, src []byte, factors []float32)
	restore  func(dst, src []byte, factors []float32)
}

func elementOf(d block.DType) element {
	switch d {
	case block.F16: // below 2^-15 the reciprocal times 2^bias would be no float32, and binary16 has few bits left there
		return element{shift: 13, bias: 112, infinity: 0x7c00, limit: 0x7bf7, maxExponent: 9, minExponent: -15,
			raise: raise16, largest: largest16, quantise: quantiseF16, restore: restoreF16}
	case block.BF16:
		return element{shift: 16, infinity: 0x7f80, limit: 0x7f7e, maxExponent: 121, minExponent: minExponent,
			raise: raise16, largest: largest16, quantise: quantiseBF16, restore: restoreBF16}
	default:
		return element{infinity: 0x7f800000, limit: 0x7f7effff, maxExponent: 121, minExponent: minExponent,
			raise: raise32, largest: largest32, quantise: quantiseF32, restore: restoreF32}
	}
}

// exponent is the stored exponent of a group whose largest magnitude has the given bits.
func (e element) exponent(magnitude uint32) byte {
	if magnitude >= e.infinity {
		return nanExponent
	}
	bits := magnitude << e.shift
	if e.shift == 13 { // exact also where bits is a subnormal float32
		bits = math.Float32bits(math.Float32frombits(bits) * 0x1p112)
	}
	x := int(bits>>23) - 127
	if bits&0x7fffff >= maxMagnitude {
		x++
	}
	return byte(min(max(x-6, e.minExponent), e.maxExponent) + expBias)
}

// reciprocal turns a shifted value of a group into what rounds to its byte.
func (e element) reciprocal(stored byte) float32 {
	if stored == nanExponent {
		return 0
	}
	return powerOfTwo(e.bias + expBias - int(stored))
}

// scale turns a byte of a group into a shifted value.
func (e element) scale(stored byte) float32 {
	x := int(stored) - expBias
	if x < e.minExponent || x > e.maxExponent {
		return math.Float32frombits(0x7fc00000)
	}
	return powerOfTwo(x - e.bias)
}

func powerOfTwo(x int) float32 {
	if x < minExponent { // binary16 only: exact as a subnormal
		return math.Float32frombits(1 << (x + 149))
	}
	return math.Float32frombits(uint32(x+127) << 23)
}

// Quantiser turns layers of a block from the form an engine computes in into that of block.QuantInt8, and back. It holds memory that it uses
// again, and is for one goroutine.
type Quantiser struct {
	layout  block.Layout
	element element
	width   int       // elements of a token in K or V of a layer
	row     int       // their bytes
	most    []byte    // a magnitude for each channel
	factors []float32 // for each element of a row
	clamped []byte    // a row
}

// NewQuantiser returns a quantiser for blocks of l, which must be valid and have block.QuantInt8.
func NewQuantiser(l block.Layout) (*Quantiser, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	if l.Quant != block.QuantInt8 {
		return nil, fmt.Errorf("codec: quantiser for a layout with quantisation %v", l.Quant)
	}
	width := l.KVHeads * l.HeadDim
	row := width * l.DType.Size()
	return &Quantiser{layout: l, element: elementOf(l.DType), width: width, row: row,
		most: make([]byte, row), factors: make([]float32, width), clamped: make([]byte, row)}, nil
}

// layers is how many whole layers there are, in both forms; other lengths are refused.
func (q *Quantiser) layers(exact, quantised []byte) (int, error) {
	a, b := q.layout.Exact().LayerBytes(), q.layout.LayerBytes()
	if n := len(exact) / a; len(exact) == n*a && len(quantised) == n*b {
		return n, nil
	}
	return 0, fmt.Errorf("codec: %d bytes and %d quantised, want as many times %d and %d", len(exact), len(quantised), a, b)
}

// Quantise writes whole layers of a block, as its engine exports them, to dst in the form that is cached. Equal inputs give equal bytes, on
// any machine.
func (q *Quantiser) Quantise(dst, src []byte) error {
	layers, err := q.layers(src, dst)
	if err != nil {
		return err
	}
	n := q.layout.BlockTokens * q.row // bytes of K, or of V, of a layer
	for range layers {
		k, v := src[:n], src[n:2*n]
		keys, channels, values, heads := q.split(dst)
		q.quantiseKeys(keys, channels, k)
		q.quantiseValues(values, heads, v)
		src, dst = src[2*n:], dst[q.layout.LayerBytes():]
	}
	return nil
}

// quantiseKeys gives each channel an exponent over all tokens.
func (q *Quantiser) quantiseKeys(dst, exponents, src []byte) {
	clear(q.most)
	for t := range q.layout.BlockTokens {
		q.element.raise(q.most, src[t*q.row:][:q.row])
	}
	clamp, size := false, q.row/q.width
	for c := range exponents {
		m := q.element.largest(q.most[c*size:][:size])
		clamp = clamp || m > q.element.limit
		exponents[c] = q.element.exponent(m)
		q.factors[c] = q.element.reciprocal(exponents[c])
	}
	for t := range q.layout.BlockTokens {
		q.quantiseRow(dst[t*q.width:][:q.width], src[t*q.row:][:q.row], clamp)
	}
}

// quantiseValues gives each head of each token an exponent.
func (q *Quantiser) quantiseValues(dst, exponents, src []byte) {
	dim := q.layout.HeadDim
	for t := range q.layout.BlockTokens {
		row, clamp := src[t*q.row:][:q.row], false
		for h := range q.layout.KVHeads {
			m := q.element.largest(row[h*q.row/q.layout.KVHeads:][:q.row/q.layout.KVHeads])
			clamp = clamp || m > q.element.limit
			e := q.element.exponent(m)
			exponents[t*q.layout.KVHeads+h] = e
			fill(q.factors[h*dim:][:dim], q.element.reciprocal(e))
		}
		q.quantiseRow(dst[t*q.width:][:q.width], row, clamp)
	}
}

func (q *Quantiser) quantiseRow(dst, row []byte, clamp bool) {
	if clamp { // next to never: values that are not finite, or in binary16 above 65248
		if q.element.shift == 0 {
			clamp32(q.clamped, row, q.element.limit)
		} else {
			clamp16(q.clamped, row, uint16(q.element.limit))
		}
		row = q.clamped
	}
	q.element.quantise(dst, row, q.factors)
}

func fill(p []float32, x float32) {
	for i := range p {
		p[i] = x
	}
}

// Dequantise is the way back, into the form that engines import. Any bytes mean something: a group whose exponent the element type does not
// reach, which Quantise never writes, is NaNs.
func (q *Quantiser) Dequantise(dst, src []byte) error {
	layers, err := q.layers(dst, src)
	if err != nil {
		return err
	}
	l, n := q.layout, q.layout.BlockTokens*q.row
	for range layers {
		k, v := dst[:n], dst[n:2*n]
		keys, channels, values, heads := q.split(src)
		for c, x := range channels {
			q.factors[c] = q.element.scale(x)
		}
		for t := range l.BlockTokens {
			q.element.restore(k[t*q.row:][:q.row], keys[t*q.width:][:q.width], q.factors)
		}
		for t := range l.BlockTokens {
			for h, x := range heads[t*l.KVHeads:][:l.KVHeads] {
				fill(q.factors[h*l.HeadDim:][:l.HeadDim], q.element.scale(x))
			}
			q.element.restore(v[t*q.row:][:q.row], values[t*q.width:][:q.width], q.factors)
		}
		dst, src = dst[2*n:], src[l.LayerBytes():]
	}
	return nil
}

// split cuts the first layer off quantised ones.
func (q *Quantiser) split(layer []byte) (keys, channels, values, heads []byte) {
	n, h := q.layout.BlockTokens*q.width, q.layout.BlockTokens*q.layout.KVHeads
	keys, layer = layer[:n], layer[n:]
	channels, layer = layer[:q.width], layer[q.width:]
	return keys, channels, layer[:n], layer[n:][:h]
}

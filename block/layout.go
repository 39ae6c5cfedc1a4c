package block

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// DType is the element type of stored K and V. Values are wire format: never renumber.
type DType uint8

// Element types of cached K and V.
const (
	F16  DType = 1 // IEEE 754 binary16
	BF16 DType = 2 // bfloat16
	F32  DType = 3 // IEEE 754 binary32
)

// Size returns the bytes of one element, 0 for an unknown type.
func (d DType) Size() int {
	switch d {
	case F16, BF16:
		return 2
	case F32:
		return 4
	}
	return 0
}

func (d DType) String() string {
	switch d {
	case F16:
		return "f16"
	case BF16:
		return "bf16"
	case F32:
		return "f32"
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// Order is the nesting of a block's payload, outermost first. Values are wire format.
type Order uint8

// OrderLKTHD is [layer][K, V][token][KV head][head dim], little-endian, without padding: the only
// order so far.
const OrderLKTHD Order = 1

func (o Order) String() string {
	if o == OrderLKTHD {
		return "lkthd"
	}
	return fmt.Sprintf("order(%d)", uint8(o))
}

// Quant is a lossy form in which K and V are cached. It belongs to the layout, because what was rounded must never be taken for what was
// not. Values are wire format: never renumber.
type Quant uint8

const (
	// QuantNone keeps every bit. The zero value.
	QuantNone Quant = 0
	// QuantInt8 keeps signed bytes and a power of two for each of their groups: in K a channel over the block's tokens, in V a token's head.
	// A layer is [K: token][KV head][head dim] bytes, [KV head][head dim] exponents, [V: token][KV head][head dim] bytes,
	// [token][KV head] exponents.
	QuantInt8 Quant = 1
)

func (q Quant) String() string {
	switch q {
	case QuantNone:
		return "none"
	case QuantInt8:
		return "int8"
	}
	return fmt.Sprintf("quant(%d)", uint8(q))
}

// Layout is the digest of the layout that is quantised as q says and has the given digest without.
func (q Quant) Layout(exact Digest) Digest {
	if q == QuantNone {
		return exact
	}
	return sha256.Sum256(append(append([]byte("kvtier/layout/1/quant\x00"), exact[:]...), byte(q)))
}

// ParseQuant is the inverse of String for the values that exist.
func ParseQuant(name string) (Quant, error) {
	for _, q := range []Quant{QuantNone, QuantInt8} {
		if name == q.String() {
			return q, nil
		}
	}
	return QuantNone, fmt.Errorf("block: unknown quantisation %q, want none or int8", name)
}

// Layout says how the K/V of a token is laid out and by which arithmetic it was computed. Two workers
// share blocks only if every field is equal: [Layout.Digest] is half of a [Variant].
type Layout struct {
	DType       DType
	Order       Order
	Layers      int
	KVHeads     int
	HeadDim     int
	BlockTokens int // tokens per block; only full blocks are cached

	TPRank, TPSize int // tensor-parallel rank and size; 0 of 1 where the model is not split

	RopeBase  float32 // base of the rotary embedding that is already applied to K
	RopeScale float32 // linear position scale, 1 for none

	// Numerics names everything else that changes bits of K and V: engine, kernel, accumulation order.
	// Output is token-identical only between engines that round alike, so they must agree on it.
	Numerics string

	// Quant is how K and V lose bits on their way into the cache; QuantNone where output must be the same with and without it.
	Quant Quant
}

// Limits on a layout: they bound what a hostile or broken model file can make us allocate.
const (
	MaxLayers      = 1024
	MaxKVHeads     = 1024
	MaxHeadDim     = 4096
	MaxBlockTokens = 4096
	MaxNumerics    = 128 // bytes

	// MaxLayerBytes is what one layer of a block may have without quantisation.
	MaxLayerBytes = 4 << 20
)

// Validate reports every field that is out of range, joined into one error.
func (l Layout) Validate() error {
	var errs []error
	in := func(name string, v, lo, hi int) {
		if v < lo || v > hi {
			errs = append(errs, fmt.Errorf("block: layout: %s is %d, want %d to %d", name, v, lo, hi))
		}
	}
	if l.DType.Size() == 0 {
		errs = append(errs, fmt.Errorf("block: layout: unknown %v", l.DType))
	}
	if l.Order != OrderLKTHD {
		errs = append(errs, fmt.Errorf("block: layout: unknown %v", l.Order))
	}
	in("Layers", l.Layers, 1, MaxLayers)
	in("KVHeads", l.KVHeads, 1, MaxKVHeads)
	in("HeadDim", l.HeadDim, 1, MaxHeadDim)
	in("BlockTokens", l.BlockTokens, 1, MaxBlockTokens)
	in("TPSize", l.TPSize, 1, 1<<16)
	in("TPRank", l.TPRank, 0, max(l.TPSize-1, 0))
	in("len(Numerics)", len(l.Numerics), 1, MaxNumerics)
	if l.Quant > QuantInt8 {
		errs = append(errs, fmt.Errorf("block: layout: unknown %v", l.Quant))
	}
	if len(errs) == 0 && l.exactLayerBytes() > MaxLayerBytes {
		errs = append(errs, fmt.Errorf("block: layout: one layer of a block is %d bytes, at most %d are allowed: lower BlockTokens (%d)",
			l.exactLayerBytes(), MaxLayerBytes, l.BlockTokens))
	}
	return errors.Join(errs...)
}

// Exact is the layout that an engine computes in: l without its quantisation.
func (l Layout) Exact() Layout {
	l.Quant = QuantNone
	return l
}

// TokenBytes is the K and V of one token over all layers as they are cached, in bytes, rounded up.
func (l Layout) TokenBytes() int { return (l.BlockBytes() + l.BlockTokens - 1) / l.BlockTokens }

// BlockBytes is the payload of a whole block, in bytes.
func (l Layout) BlockBytes() int { return l.Layers * l.LayerBytes() }

// LayerBytes is what one layer of a block has, in bytes.
func (l Layout) LayerBytes() int {
	if l.Quant == QuantInt8 {
		return 2*l.BlockTokens*l.KVHeads*l.HeadDim + l.KVHeads*l.HeadDim + l.BlockTokens*l.KVHeads
	}
	return l.exactLayerBytes()
}

func (l Layout) exactLayerBytes() int {
	return 2 * l.BlockTokens * l.RowBytes()
}

// RowBytes is the K, or the V, of one token in one layer without quantisation, in bytes. A block of such rows is [layer][K, V][token].
func (l Layout) RowBytes() int { return l.KVHeads * l.HeadDim * l.DType.Size() }

// Digest is SHA-256 over the canonical encoding of every field: fixed-width little-endian numbers in the order of
// declaration, then the length-prefixed numerics tag, behind a domain prefix that carries the wire major version; and Quant.Layout of that.
// So releases whose parts or frames differ store under different names (docs/decisions/020-size-classes.md).
func (l Layout) Digest() Digest {
	b := make([]byte, 0, 256)
	b = append(b, "kvtier/layout/2\x00"...)
	b = append(b, byte(l.DType), byte(l.Order))
	for _, v := range []int{l.Layers, l.KVHeads, l.HeadDim, l.BlockTokens, l.TPRank, l.TPSize} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	b = binary.LittleEndian.AppendUint32(b, math.Float32bits(l.RopeBase))
	b = binary.LittleEndian.AppendUint32(b, math.Float32bits(l.RopeScale))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Numerics)))
	b = append(b, l.Numerics...)
	return l.Quant.Layout(sha256.Sum256(b))
}

package llama

import (
	"encoding/binary"
	"math"

	"github.com/kvtier/kvtier/internal/half"
	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// dequantize widens src, whole storage blocks of type d, to dst, which has exactly as many elements.
func dequantize(dst []float32, src []byte, d gguf.DType) {
	if f := blockFuncs[d]; f != nil {
		elements, bytes := d.Block()
		for ; len(dst) >= elements; dst, src = dst[elements:], src[bytes:] {
			f(dst[:elements], src[:bytes])
		}
		return
	}
	switch d {
	case gguf.F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case gguf.F16:
		for i := range dst {
			dst[i] = half.ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	case gguf.BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	default:
		panic("llama: dequantize: " + d.String() + " passed the reader")
	}
}

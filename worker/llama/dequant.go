package llama

import (
	"encoding/binary"
	"math"

	"github.com/kvtier/kvtier/internal/half"
	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// dequantize widens src, whole storage blocks of type d, to dst, which has exactly as many elements.
func dequantize(dst []float32, src []byte, d gguf.DType) {
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
	case gguf.Q8_0:
		const elements, bytes = 32, 34
		for ; len(dst) >= elements; dst, src = dst[elements:], src[bytes:] {
			scale := half.ToFloat32(binary.LittleEndian.Uint16(src))
			for i := range elements {
				dst[i] = scale * float32(int8(src[2+i]))
			}
		}
	default:
		panic("llama: dequantize: " + d.String() + " passed the reader")
	}
}

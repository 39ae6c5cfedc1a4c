package kernel

import "math"

func rsqrt(x float32) float32 { return float32(1 / math.Sqrt(float64(x))) }

// Rope turns vectors by angles that grow with their position, adjacent dimensions (2i, 2i+1) together, which is the order
// in which the llama architecture's GGUF files store them.
type Rope struct {
	inverse []float64 // angle per position of each pair, in radians
}

// NewRope rotates the first dims dimensions: pair i turns by position × scale × base^(-2i/dims).
func NewRope(dims int, base, scale float64) Rope {
	r := Rope{inverse: make([]float64, dims/2)}
	for i := range r.inverse {
		r.inverse[i] = scale * math.Pow(base, -2*float64(i)/float64(dims))
	}
	return r
}

// Pairs is the number of pairs that turn.
func (r Rope) Pairs() int { return len(r.inverse) }

// Table writes the sine and cosine of each pair's angle at pos, interleaved: 2×Pairs() elements.
func (r Rope) Table(dst []float32, pos int) {
	for i, inv := range r.inverse {
		sin, cos := math.Sincos(float64(pos) * inv)
		dst[2*i], dst[2*i+1] = float32(sin), float32(cos)
	}
}

// Rotate turns x in place by a table.
func Rotate(x, table []float32) {
	x = x[:len(table)]
	for i := 0; i+1 < len(x); i += 2 {
		sin, cos := table[i], table[i+1]
		a, b := x[i], x[i+1]
		// The conversions keep the compiler from fusing: the same source must round the same on every target.
		x[i] = float32(a*cos) - float32(b*sin)
		x[i+1] = float32(a*sin) + float32(b*cos)
	}
}

// ScaleBy multiplies x in place.
func ScaleBy(x []float32, by float32) {
	for i := range x {
		x[i] *= by
	}
}

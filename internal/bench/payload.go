package bench

import (
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/kvtier/kvtier/block"
)

// FillRandom makes p incompressible, the same for the same seed.
func FillRandom(p []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, r.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}

// fillKV writes a block of layout l, which must be bf16, that is distributed like K and V of a Llama: K has a mean of its own per channel, some
// channels ten times as large, and neighbouring tokens alike; V has no mean and no outliers. It decides how far a codec compresses; real K/V
// compresses differently from model to model.
func fillKV(p []byte, l block.Layout, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	width := l.KVHeads * l.HeadDim
	mean, sigma, last := make([]float64, width), make([]float64, width), make([]float64, width)
	put := func(x float64) {
		bits := math.Float32bits(float32(x))
		bits += 0x7fff + bits>>16&1 // to nearest even
		binary.LittleEndian.PutUint16(p, uint16(bits>>16))
		p = p[2:]
	}
	const alike = 0.81 // correlation of neighbouring tokens in K
	for range l.Layers {
		for c := range width {
			mean[c], sigma[c], last[c] = r.NormFloat64()*0.6, math.Exp(r.NormFloat64()*0.5-0.2), r.NormFloat64()
			if r.Float64() < 0.04 {
				sigma[c] *= 10
			}
		}
		for range l.BlockTokens {
			for c := range width {
				last[c] = alike*last[c] + math.Sqrt(1-alike*alike)*r.NormFloat64()
				put(mean[c] + sigma[c]*last[c])
			}
		}
		for c := range width {
			sigma[c] = math.Exp(r.NormFloat64()*0.4 - 1.2)
		}
		for range l.BlockTokens {
			size := math.Exp(r.NormFloat64() * 0.4)
			for c := range width {
				put(sigma[c] * size * r.NormFloat64())
			}
		}
	}
}

package codec_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/half"
)

func int8Layout(d block.DType, heads, dim, tokens int) block.Layout {
	return block.Layout{DType: d, Order: block.OrderLKTHD, Layers: 2, KVHeads: heads, HeadDim: dim, BlockTokens: tokens, TPSize: 1,
		RopeBase: 10000, RopeScale: 1, Numerics: "test/1", Quant: block.QuantInt8}
}

var dtypes = []block.DType{block.F16, block.BF16, block.F32}

func toFloat(d block.DType, p []byte, i int) float64 {
	switch d {
	case block.F16:
		return float64(half.ToFloat32(binary.LittleEndian.Uint16(p[2*i:])))
	case block.BF16:
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(p[2*i:])) << 16))
	default:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(p[4*i:])))
	}
}

func putFloat(d block.DType, p []byte, i int, x float64) {
	switch d {
	case block.F16:
		binary.LittleEndian.PutUint16(p[2*i:], half.FromFloat32(float32(x)))
	case block.BF16:
		binary.LittleEndian.PutUint16(p[2*i:], uint16(math.Float32bits(float32(x))>>16))
	default:
		binary.LittleEndian.PutUint32(p[4*i:], math.Float32bits(float32(x)))
	}
}

// groupOf says which values share an exponent with element i of a layer: in K a channel, in V a token's head.
func groupOf(l block.Layout, i int) string {
	width := l.KVHeads * l.HeadDim
	if i < l.BlockTokens*width {
		return fmt.Sprint("channel ", i%width)
	}
	return fmt.Sprint("head ", i/l.HeadDim)
}

// The plain twin: what the form says, written down without regard to speed.
func slowly(l block.Layout, src []byte) []float64 {
	e := map[block.DType]struct{ min, max int }{block.F16: {-15, 9}, block.BF16: {-126, 121}, block.F32: {-126, 121}}[l.DType]
	n := l.Exact().BlockBytes() / l.Layers / l.DType.Size()
	out := make([]float64, 0, l.Layers*n)
	for layer := range l.Layers {
		in := src[layer*n*l.DType.Size():]
		most := map[string]float64{}
		for i := range n {
			x := math.Abs(toFloat(l.DType, in, i))
			if math.IsNaN(x) {
				x = math.Inf(1)
			}
			most[groupOf(l, i)] = max(most[groupOf(l, i)], x)
		}
		for i := range n {
			m := most[groupOf(l, i)]
			if math.IsInf(m, 1) {
				out = append(out, math.NaN())
				continue
			}
			x := e.min
			for x < e.max && m >= math.Ldexp(127.5, x) {
				x++
			}
			q := math.RoundToEven(math.Ldexp(toFloat(l.DType, in, i), -x))
			out = append(out, math.Ldexp(max(-127, min(127, q)), x))
		}
	}
	return out
}

func TestInt8IsWhatTheFormSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.SampledFrom(dtypes).Draw(t, "dtype")
		l := int8Layout(d, rapid.IntRange(1, 3).Draw(t, "heads"), rapid.IntRange(1, 13).Draw(t, "dim"), rapid.IntRange(1, 9).Draw(t, "tokens"))
		src := make([]byte, l.Exact().BlockBytes())
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		kind := rapid.IntRange(0, 3).Draw(t, "kind")
		for i := range len(src) / d.Size() {
			switch kind {
			case 0: // like K/V
				putFloat(d, src, i, rng.NormFloat64()*3)
			case 1: // of all sizes, signs, zeros and subnormals included
				putFloat(d, src, i, rng.NormFloat64()*math.Exp2(float64(rng.IntN(60)-40)))
			case 2: // ties and limits
				putFloat(d, src, i, math.Ldexp(float64(rng.IntN(1025)-512)/4, rng.IntN(10)))
			default: // any bits, infinities and NaNs included
				for j := range d.Size() {
					src[i*d.Size()+j] = byte(rng.Uint32())
				}
			}
		}
		q, err := codec.NewQuantiser(l)
		if err != nil {
			t.Fatal(err)
		}
		cached, restored := make([]byte, l.BlockBytes()), make([]byte, len(src))
		if err := errors.Join(q.Quantise(cached, src), q.Dequantise(restored, cached)); err != nil {
			t.Fatal(err)
		}
		for i, want := range slowly(l, src) {
			if got := toFloat(d, restored, i); got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
				t.Fatalf("%v element %d of %v is %v, want %v", d, i, toFloat(d, src, i), got, want)
			}
		}

		// Once more gives the same bytes: errors do not add up.
		again := make([]byte, len(cached))
		if err := q.Quantise(again, restored); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, cached) {
			t.Fatalf("%v: quantised again, a block has other bytes", d)
		}
	})
}

// A frame says that its payload is lossy, and a reader of the exact layout, or of an older release, takes it for nothing of its own.
func TestInt8Frames(t *testing.T) {
	l := smallLayout()
	exact := newFormat(t, l)
	l.Quant = block.QuantInt8
	f := newFormat(t, l)
	h := headerFor(l)
	frame := sealed(t, f, h)
	info, err := codec.Inspect(frame)
	if err != nil || info.Meta.Quant != "int8" {
		t.Errorf("Inspect says %+v, %v; want int8", info.Meta, err)
	}
	if payload, err := f.Open(frame, h); err != nil || len(payload) != l.BlockBytes() {
		t.Fatalf("Open = %d bytes, %v", len(payload), err)
	}
	var s codec.Scratch
	if _, payload, err := f.OpenAny(frame, len(frame), h, &s); err != nil || len(payload) != l.BlockBytes() {
		t.Fatalf("OpenAny = %d bytes, %v", len(payload), err)
	}
	if _, _, err := exact.OpenAny(frame, len(frame), headerFor(l.Exact()), &s); !errors.Is(err, codec.ErrForeign) {
		t.Errorf("the exact layout's reader: %v, want ErrForeign", err)
	}
	other := sealed(t, exact, headerFor(l.Exact()))
	if _, _, err := f.OpenAny(other, len(other), h, &s); !errors.Is(err, codec.ErrForeign) {
		t.Errorf("an exact frame to a quantised reader: %v, want ErrForeign", err)
	}
	if _, ok := f.Encode(nil, frame, codec.Planes, &s); ok || f.Encodes(codec.Planes) || f.Encodes(codec.Raw) || exact.Encodes(codec.Int8) {
		t.Error("encodings of the exact and the quantised layout mix")
	}
	if codec.Int8.Lossless() || !codec.Planes.Lossless() || !codec.Raw.Lossless() {
		t.Error("int8 alone is lossy")
	}

	frame[176] = byte(codec.Raw) // resealed, so that nothing but the claim is wrong
	codec.Reseal(frame, len(frame)-l.BlockBytes())
	if _, _, err := f.OpenAny(frame, len(frame), h, &s); err == nil {
		t.Error("a quantised frame that claims to be raw is taken")
	}
}

func TestInt8RefusesMisuse(t *testing.T) {
	l := int8Layout(block.F16, 1, 8, 4)
	if _, err := codec.NewQuantiser(l.Exact()); err == nil {
		t.Error("a quantiser for a layout without quantisation")
	}
	q, err := codec.NewQuantiser(l)
	if err != nil {
		t.Fatal(err)
	}
	exact, cached := make([]byte, l.Exact().BlockBytes()), make([]byte, l.BlockBytes())
	if q.Quantise(cached[1:], exact) == nil || q.Dequantise(exact, cached[1:]) == nil {
		t.Error("wrong lengths are taken")
	}
	if err := q.Quantise(cached, exact); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []byte{0, 127 - 16, 127 + 10, 254, 255} {
		cached[4*8] = bad // the first channel's exponent
		if err := q.Dequantise(exact, cached); err != nil || !math.IsNaN(toFloat(block.F16, exact, 0)) || toFloat(block.F16, exact, 1) != 0 {
			t.Errorf("exponent byte %d: %v, %v and %v; want NaN and 0", bad, err, toFloat(block.F16, exact, 0), toFloat(block.F16, exact, 1))
		}
	}
}

func FuzzInt8(f *testing.F) {
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, d := range dtypes {
			l := int8Layout(d, 1, 5, 3)
			cached, exact := make([]byte, l.BlockBytes()), make([]byte, l.Exact().BlockBytes())
			copy(cached, b)
			q, err := codec.NewQuantiser(l)
			if err != nil {
				t.Fatal(err)
			}
			again := make([]byte, len(cached))
			if err := errors.Join(q.Dequantise(exact, cached), q.Quantise(again, exact)); err != nil {
				t.Fatal(err)
			}
			restored := make([]byte, len(exact))
			if err := errors.Join(q.Dequantise(restored, again), q.Quantise(cached, restored)); err != nil || !bytes.Equal(cached, again) {
				t.Fatalf("%v: what was made from any bytes does not come back: %v", d, err)
			}
		}
	})
}

func BenchmarkInt8(b *testing.B) {
	for _, d := range dtypes {
		l := layout8B()
		l.DType, l.Quant = d, block.QuantInt8
		src, cached := make([]byte, l.Exact().BlockBytes()), make([]byte, l.BlockBytes())
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range len(src) / d.Size() {
			putFloat(d, src, i, rng.NormFloat64())
		}
		q, err := codec.NewQuantiser(l)
		if err != nil {
			b.Fatal(err)
		}
		if err := q.Quantise(cached, src); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("quantise/%v", d), func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			for b.Loop() {
				if err := q.Quantise(cached, src); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("dequantise/%v", d), func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			for b.Loop() {
				if err := q.Dequantise(src, cached); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

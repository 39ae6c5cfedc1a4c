package half

import (
	"math"
	"testing"

	"github.com/tphakala/simd/f16"
)

func TestEveryPatternSurvives(t *testing.T) {
	for h := range 1 << 16 {
		if got := FromFloat32(ToFloat32(uint16(h))); got != uint16(h) {
			t.Fatalf("%#04x came back as %#04x", h, got)
		}
	}
}

// The F16C conversion of the library is an independent implementation: they must agree on everything but NaN payloads.
func TestAgreesWithLibrary(t *testing.T) {
	for h := range 1 << 16 {
		want, got := f16.ToFloat32(f16.Float16(h)), ToFloat32(uint16(h))
		if math.Float32bits(got) != math.Float32bits(want) && !(got != got && want != want) {
			t.Fatalf("ToFloat32(%#04x) = %v, want %v", h, got, want)
		}
	}
	// Every binary16 value, its neighbours in binary32, and the halfway points between two of them.
	check := func(bits uint32) {
		f := math.Float32frombits(bits)
		if f != f {
			return
		}
		if got, want := FromFloat32(f), uint16(f16.FromFloat32(f)); got != want {
			t.Fatalf("FromFloat32(%v, %#08x) = %#04x, want %#04x", f, bits, got, want)
		}
	}
	for h := range 1 << 16 {
		bits := math.Float32bits(ToFloat32(uint16(h)))
		for _, d := range []uint32{0, 1, 0xfff, 0x1000, 0x1001} {
			check(bits + d)
			check(bits - d)
		}
	}
	for e := range uint32(512) { // small exponents: everything near the subnormals
		for m := range uint32(1 << 9) {
			check(e<<23 | m<<14)
			check(e<<23 | m<<14 | 1)
		}
	}
}

func TestRound(t *testing.T) {
	for _, c := range []struct{ in, want float32 }{
		{1, 1}, {1 + 1.0/2048, 1}, {1 + 3.0/2048, 1 + 2.0/1024}, {65519, 65504}, {65520, float32(math.Inf(1))}, {1e-9, 0},
	} {
		if got := Round(c.in); got != c.want {
			t.Errorf("Round(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}

func BenchmarkRound(b *testing.B) {
	x := float32(0.37)
	for b.Loop() {
		x = Round(x + 0.001)
	}
}

package codec_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
)

// fillLikeKV writes numbers with the statistics of keys and values: bfloat16, normal, of a scale of their own per channel.
func fillLikeKV(dst []byte, headDim int, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	scale := make([]float64, headDim)
	for i := range scale {
		scale[i] = math.Exp(r.NormFloat64() * 0.5)
	}
	for i := 0; i+1 < len(dst); i += 2 {
		f := float32(r.NormFloat64() * scale[i/2%headDim])
		binary.LittleEndian.PutUint16(dst[i:], uint16(math.Float32bits(f)>>16))
	}
}

func layout8B() block.Layout {
	return block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 32, KVHeads: 8, HeadDim: 128, BlockTokens: 16, TPSize: 1,
		RopeBase: 500000, RopeScale: 1, Numerics: "test/1"}
}

func sealedKV(t testing.TB, f *codec.Format, h codec.Header) []byte {
	t.Helper()
	frame := make([]byte, f.FrameBytes(f.Layout().Part(h.Part)))
	fillLikeKV(f.Payload(frame), f.Layout().HeadDim, 1)
	if err := f.Seal(frame, h); err != nil {
		t.Fatal(err)
	}
	return frame
}

// Whatever the bits are, what comes out is what went in, including the header.
func TestPlanesRoundTrip(t *testing.T) {
	var s codec.Scratch
	rapid.Check(t, func(rt *rapid.T) {
		l := smallLayout()
		l.DType = rapid.SampledFrom([]block.DType{block.F16, block.BF16}).Draw(rt, "dtype")
		l.Layers = rapid.IntRange(1, 5).Draw(rt, "layers")
		l.BlockTokens = rapid.SampledFrom([]int{1, 3, 16, 33, 256}).Draw(rt, "tokens")
		l.HeadDim = rapid.SampledFrom([]int{1, 3, 64, 300}).Draw(rt, "headDim")
		f, err := codec.NewFormat(l)
		if err != nil {
			rt.Fatal(err)
		}
		h := headerFor(l)
		h.Part = rapid.IntRange(0, l.PartCount()-1).Draw(rt, "part") // parts begin and end within a plane
		part := l.Part(h.Part)
		frame := make([]byte, f.FrameBytes(part))
		p := f.Payload(frame)
		switch rapid.IntRange(0, 3).Draw(rt, "kind") {
		case 0:
			fillLikeKV(p, l.HeadDim, rapid.Uint64().Draw(rt, "seed"))
		case 1: // zeros
		case 2: // noise
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
			for i := range p {
				p[i] = byte(r.Uint32())
			}
		case 3:
			copy(p, rapid.SliceOfN(rapid.Byte(), 0, len(p)).Draw(rt, "bytes"))
		}
		if err := f.Seal(frame, h); err != nil {
			rt.Fatal(err)
		}
		encoded, ok := f.Encode(nil, frame, codec.Planes, &s)
		if !ok {
			return // would not be smaller
		}
		if len(encoded) >= len(frame) {
			rt.Fatalf("%d bytes of %d", len(encoded), len(frame))
		}
		again, _ := f.Encode(nil, frame, codec.Planes, new(codec.Scratch))
		if !bytes.Equal(again, encoded) {
			rt.Fatal("not deterministic")
		}
		if _, err := f.Open(encoded, h); !errors.Is(err, codec.ErrVersion) {
			rt.Fatalf("Open of an encoded frame: %v, want ErrVersion", err)
		}
		buf := make([]byte, f.MaxFrameBytes(part))
		got, payload, err := f.OpenAny(buf, copy(buf, encoded), h, &s)
		if err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(got, frame) || !bytes.Equal(payload, f.Payload(frame)) {
			rt.Fatal("frame changed on the way")
		}
	})
}

func TestEncodingNames(t *testing.T) {
	for _, e := range []codec.Encoding{codec.Raw, codec.Planes} {
		if got, err := codec.ParseEncoding(e.String()); err != nil || got != e {
			t.Errorf("ParseEncoding(%v) = %v, %v", e, got, err)
		}
	}
	for _, bad := range []string{"", "int8", "zstd"} { // int8 is the layout's, not a writer's choice
		if _, err := codec.ParseEncoding(bad); err == nil || !strings.Contains(err.Error(), "raw or planes") {
			t.Errorf("ParseEncoding(%q): %v", bad, err)
		}
	}
}

func TestPlanesShrinkKV(t *testing.T) {
	l := layout8B()
	f := newFormat(t, l)
	frame := sealedKV(t, f, headerFor(l))
	encoded, ok := f.Encode(nil, frame, codec.Planes, new(codec.Scratch))
	if ratio := float64(len(frame)) / float64(len(encoded)); !ok || ratio < 1.4 {
		t.Errorf("ratio %.3f, want 1.4 at least", ratio)
	}
}

func TestGoldenPlanes(t *testing.T) {
	l := smallLayout()
	l.DType, l.BlockTokens, l.HeadDim = block.BF16, 16, 16
	f := newFormat(t, l)
	frame := make([]byte, f.FrameBytes(l.Part(0)))
	for i, p := 0, f.Payload(frame); i < len(p); i += 2 { // 1, -0.5, 0.25, 2, … with growing mantissas
		binary.LittleEndian.PutUint16(p[i:], uint16([]int{0x3f80, 0xbf00, 0x3e80, 0x4000, 0x3f80}[i/2%5]+i/2%97))
	}
	if err := f.Seal(frame, headerFor(l)); err != nil {
		t.Fatal(err)
	}
	encoded, ok := f.Encode(nil, frame, codec.Planes, new(codec.Scratch))
	if !ok {
		t.Fatal("not smaller")
	}
	path := filepath.Join("testdata", "frame-v2-planes.hex")
	if *update {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(encoded)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, f.MaxFrameBytes(l.Part(0)))
	got, _, err := f.OpenAny(buf, copy(buf, want), headerFor(l), new(codec.Scratch))
	if err != nil || !bytes.Equal(got, frame) {
		t.Errorf("the stored vector does not decode: %v", err)
	}
	if !bytes.Equal(encoded, want) {
		t.Error("encoding changed: readers still understand both, but equal blocks must give equal bytes")
	}
}

// Hostile payloads behind valid checksums neither crash nor write past the block.
func FuzzPlanes(f *testing.F) {
	l := smallLayout()
	l.DType, l.Layers, l.KVHeads, l.BlockTokens, l.HeadDim = block.BF16, 1, 1, 16, 8
	format := newFormat(f, l)
	h := headerFor(l)
	frame := sealedKV(f, format, h)
	encoded, ok := format.Encode(nil, frame, codec.Planes, new(codec.Scratch))
	if !ok {
		f.Fatal("not smaller")
	}
	offset := len(frame) - len(format.Payload(frame))
	f.Add(encoded[offset:])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0}, 99))
	f.Fuzz(func(t *testing.T, payload []byte) {
		buf := make([]byte, max(format.MaxFrameBytes(l.Part(0)), offset+len(payload)))
		n := offset + len(payload)
		copy(buf[copy(buf, encoded[:offset]):], payload)
		codec.Reseal(buf[:n], offset)
		got, _, err := format.OpenAny(buf, n, h, new(codec.Scratch))
		if err == nil && len(got) != len(frame) {
			t.Errorf("frame of %d bytes, want %d", len(got), len(frame))
		}
		if err != nil && !errors.Is(err, codec.ErrCorrupt) && !errors.Is(err, codec.ErrVersion) {
			t.Errorf("unexpected error %v", err)
		}
	})
}

func BenchmarkPlanes(b *testing.B) {
	l := layout8B()
	f := newFormat(b, l)
	h := headerFor(l)
	frame := sealedKV(b, f, h)
	var s codec.Scratch
	encoded, _ := f.Encode(nil, frame, codec.Planes, &s)
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(frame)))
		b.ReportAllocs()
		out := make([]byte, 0, len(frame))
		for b.Loop() {
			out, _ = f.Encode(out[:0], frame, codec.Planes, &s)
		}
		b.ReportMetric(float64(len(frame))/float64(len(encoded)), "ratio")
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(frame)))
		b.ReportAllocs()
		buf := make([]byte, f.MaxFrameBytes(l.Part(0)))
		for b.Loop() {
			if _, _, err := f.OpenAny(buf, copy(buf, encoded), h, &s); err != nil {
				b.Fatal(err)
			}
		}
	})
}

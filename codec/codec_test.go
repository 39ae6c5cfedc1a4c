package codec_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
)

var update = flag.Bool("update", false, "rewrite golden files")

func smallLayout() block.Layout {
	return block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 2, KVHeads: 2, HeadDim: 4, BlockTokens: 4,
		TPSize: 1, RopeBase: 10000, RopeScale: 1, Numerics: "test/1"}
}

func newFormat(t testing.TB, l block.Layout) *codec.Format {
	t.Helper()
	f, err := codec.NewFormat(l)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func headerFor(l block.Layout) codec.Header {
	id := block.Identity{Weights: block.Digest{1, 2, 3}, Layout: l.Digest()}
	c := block.NewChain(nil, id, "tenant", l.BlockTokens)
	return codec.Header{Identity: id, Namespace: c.Namespace(), Epoch: 1_700_000_000_000, Hash: c.Next(c.Root(), []int32{1, 2, 3, 4})}
}

// sealed returns a frame of the first part whose payload counts upwards.
func sealed(t testing.TB, f *codec.Format, h codec.Header) []byte {
	t.Helper()
	frame := make([]byte, f.FrameBytes(f.Layout().Part(h.Part)))
	for i, p := 0, f.Payload(frame); i < len(p); i++ {
		p[i] = byte(i)
	}
	if err := f.Seal(frame, h); err != nil {
		t.Fatal(err)
	}
	return frame
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := smallLayout()
		l.Layers = rapid.IntRange(1, 9).Draw(rt, "layers")
		l.BlockTokens = rapid.IntRange(1, 64).Draw(rt, "blockTokens")
		l.HeadDim = rapid.SampledFrom([]int{1, 3, 64, 1024}).Draw(rt, "headDim")
		f, err := codec.NewFormat(l)
		if err != nil {
			rt.Fatal(err)
		}
		h := headerFor(l)
		h.Part = rapid.IntRange(0, l.PartCount()-1).Draw(rt, "part")
		h.Epoch = block.Epoch(rapid.Uint64().Draw(rt, "epoch"))
		frame := make([]byte, f.FrameBytes(l.Part(h.Part)))
		for i := range frame { // a reused buffer is full of old bytes
			frame[i] = byte(i * 7)
		}
		want := bytes.Clone(f.Payload(frame))
		if err := f.Seal(frame, h); err != nil {
			rt.Fatal(err)
		}
		got, err := f.Open(frame, h)
		if err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			rt.Fatal("payload changed on the way")
		}
		info, err := codec.Inspect(frame)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(h, info.Header); diff != "" {
			rt.Fatalf("Inspect (-want +got):\n%s", diff)
		}
	})
}

// The golden frame pins the wire format: a change to it is a new version, never a refresh of the file.
func TestGoldenFrame(t *testing.T) {
	l := smallLayout()
	f := newFormat(t, l)
	got := []byte(hex.Dump(sealed(t, f, headerFor(l))))
	path := filepath.Join("testdata", "frame-v2.hex")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("wire format changed (-want +got):\n%s", diff)
	}
}

// Every accident of one bit or of a lost tail is noticed, wherever it strikes.
func TestDamageIsNoticed(t *testing.T) {
	l := smallLayout()
	f := newFormat(t, l)
	h := headerFor(l)
	frame := sealed(t, f, h)
	for i := range frame {
		for bit := range 8 {
			bad := bytes.Clone(frame)
			bad[i] ^= 1 << bit
			if _, err := f.Open(bad, h); err == nil {
				t.Fatalf("Open accepted bit %d of byte %d flipped", bit, i)
			}
			if _, err := codec.Inspect(bad); err == nil {
				t.Fatalf("Inspect accepted bit %d of byte %d flipped", bit, i)
			}
		}
	}
	for n := range frame {
		if _, err := f.Open(frame[:n], h); !errors.Is(err, codec.ErrCorrupt) {
			t.Fatalf("Open of the first %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
	if _, err := f.Open(append(bytes.Clone(frame), 0), h); !errors.Is(err, codec.ErrCorrupt) {
		t.Fatalf("Open with a byte too many: %v, want ErrCorrupt", err)
	}
}

// An intact value of anybody else is refused by the field that differs.
func TestForeignIsRefused(t *testing.T) {
	l := smallLayout()
	f := newFormat(t, l)
	h := headerFor(l)
	frame := sealed(t, f, h)
	for field, change := range map[codec.Field]func(*codec.Header){
		codec.FieldWeights:   func(h *codec.Header) { h.Identity.Weights[31] ^= 1 },
		codec.FieldLayout:    func(h *codec.Header) { h.Identity.Layout[31] ^= 1 },
		codec.FieldNamespace: func(h *codec.Header) { h.Namespace[31] ^= 1 },
		codec.FieldEpoch:     func(h *codec.Header) { h.Epoch++ },
		codec.FieldAct:       func(h *codec.Header) { h.Act[6] ^= 1 }, // race 19: an epoch that was given out twice
		codec.FieldHash:      func(h *codec.Header) { h.Hash[31] ^= 1 },
		codec.FieldPart:      func(h *codec.Header) { h.Part++ },
	} {
		want := h
		change(&want)
		_, err := f.Open(frame, want)
		e, ok := errors.AsType[*codec.Error](err)
		if !errors.Is(err, codec.ErrForeign) || !ok || e.Field != field {
			t.Errorf("other %s: got %v, want ErrForeign for that field", field, err)
		}
	}
}

// A length that is intact, signed by both checksums and yet not what the reader's own layout implies is refused: stored sizes are never trusted.
func TestAForgedLengthIsRefused(t *testing.T) {
	l := smallLayout()
	f := newFormat(t, l)
	h := headerFor(l)
	frame := sealed(t, f, h)
	off := len(frame) - l.PartBytes(l.Part(0))
	le := binary.LittleEndian
	for _, n := range []int{0, 1, 64, l.PartBytes(l.Part(0)) - 1, l.PartBytes(l.Part(0)) + 64} {
		bad := append(bytes.Clone(frame[:off]), make([]byte, n)...)
		le.PutUint64(bad[16:], uint64(n))
		le.PutUint64(bad[24:], uint64(n))
		le.PutUint64(bad[184:], xxh3.Hash(bad[off:]))
		table := crc32.MakeTable(crc32.Castagnoli)
		le.PutUint32(bad[196:], crc32.Update(crc32.Checksum(bad[:196], table), table, bad[200:off]))
		if _, err := codec.Inspect(bad); err != nil {
			t.Fatalf("the forgery of %d bytes is none: %v", n, err)
		}
		if _, err := f.Open(bad, h); !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("Open of %d bytes that claim to be the payload: %v, want ErrCorrupt", n, err)
		}
	}
}

// A part says where in its block it belongs: at another place it would be other layers' K/V, or other tokens'.
func TestAPartIsBoundToItsPlace(t *testing.T) {
	l := layout8B()
	f := newFormat(t, l)
	h := headerFor(l)
	h.Part = 1
	frame := sealed(t, f, h)
	le := binary.LittleEndian
	if at := le.Uint32(frame[192:]); int(at) != l.Part(1).Offset || at == 0 {
		t.Fatalf("the header says offset %d, want %d", at, l.Part(1).Offset)
	}
	le.PutUint32(frame[192:], uint32(l.Part(1).Offset-l.RowBytes()))
	codec.Reseal(frame, len(frame)-l.Part(1).Bytes)
	_, err := f.Open(frame, h)
	if e, ok := errors.AsType[*codec.Error](err); !errors.Is(err, codec.ErrCorrupt) || !ok || e.Field != codec.FieldOffset {
		t.Errorf("another offset: %v, want ErrCorrupt for it", err)
	}
}

func TestSealRefusesMisuse(t *testing.T) {
	l := smallLayout()
	f := newFormat(t, l)
	frame := make([]byte, f.FrameBytes(l.Part(0)))
	for name, change := range map[string]func(*codec.Header, *[]byte){
		"short frame":  func(_ *codec.Header, b *[]byte) { *b = (*b)[:len(*b)-1] },
		"no weights":   func(h *codec.Header, _ *[]byte) { h.Identity.Weights = block.Digest{} },
		"other layout": func(h *codec.Header, _ *[]byte) { h.Identity.Layout[0] ^= 1 },
		"part":         func(h *codec.Header, _ *[]byte) { h.Part = 1 },
	} {
		h, b := headerFor(l), frame
		change(&h, &b)
		if err := f.Seal(b, h); err == nil {
			t.Errorf("%s: Seal succeeded", name)
		}
	}
}

func TestOpenDoesNotAllocate(t *testing.T) {
	l := smallLayout()
	f := newFormat(t, l)
	h := headerFor(l)
	frame := sealed(t, f, h)
	if n := testing.AllocsPerRun(100, func() {
		if err := f.Seal(frame, h); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Open(frame, h); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Seal and Open allocate %v times, want 0", n)
	}
}

// Whatever bytes a store returns: no panic, no large allocation, and nothing but the sealed frame is accepted.
func FuzzOpen(f *testing.F) {
	l := smallLayout()
	format := newFormat(f, l)
	h := headerFor(l)
	good := sealed(f, format, h)
	f.Add(good)
	f.Add([]byte{})
	f.Add(good[:codec.HeaderBytes])
	bomb := bytes.Clone(good)
	copy(bomb[codec.HeaderBytes:], []byte{0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Add(bomb)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := format.Open(b, h); err == nil && !bytes.Equal(b[codec.HeaderBytes:], good[codec.HeaderBytes:]) {
			// xxh3 is no MAC: a fuzzer that forges it is welcome, but the length and identity must still be ours.
			if len(b) != len(good) {
				t.Fatalf("accepted %d bytes, want %d", len(b), len(good))
			}
		}
		_, _ = codec.Inspect(b)
	})
}

func BenchmarkCodec(b *testing.B) {
	for name, l := range map[string]block.Layout{
		"shakespeare-3m/16": {DType: block.F16, Order: block.OrderLKTHD, Layers: 4, KVHeads: 4, HeadDim: 32, BlockTokens: 16, TPSize: 1, Numerics: "b"},
		"llama-3-8b/16":     {DType: block.BF16, Order: block.OrderLKTHD, Layers: 32, KVHeads: 8, HeadDim: 128, BlockTokens: 16, TPSize: 1, Numerics: "b"},
	} {
		f := newFormat(b, l)
		h := headerFor(l)
		frame := sealed(b, f, h)
		b.Run("seal/"+name, func(b *testing.B) {
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				_ = f.Seal(frame, h)
			}
		})
		b.Run("open/"+name, func(b *testing.B) {
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = f.Open(frame, h)
			}
		})
	}
}

package codec_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
)

// bf16Layout is small, and its frames can be encoded as planes.
func bf16Layout() block.Layout {
	l := smallLayout()
	l.DType, l.BlockTokens, l.HeadDim = block.BF16, 16, 16
	return l
}

// everything does with a frame that was fetched what this project does with frames, and fails where one that is accepted is not as good as
// the one that Seal makes of the same payload. It reports whether it was accepted.
func everything(t *testing.T, f *codec.Format, stored []byte, h codec.Header) bool {
	t.Helper()
	var s codec.Scratch
	part := f.Layout().Part(h.Part)
	buf := make([]byte, max(f.MaxFrameBytes(part), len(stored)))
	frame, payload, err := f.OpenAny(buf, copy(buf, stored), h, &s)
	if err != nil {
		if _, err := f.Open(stored, h); err == nil {
			t.Fatal("Open accepts what OpenAny refuses")
		}
		_, _ = codec.Inspect(stored)
		_, _ = f.Encode(nil, stored, codec.Planes, &s)
		return false
	}
	want := make([]byte, f.FrameBytes(part))
	copy(f.Payload(want), payload)
	if err := f.Seal(want, h); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(frame, want) || !bytes.Equal(f.Payload(frame), payload) {
		t.Fatal("an accepted frame is not the one that Seal makes of its payload")
	}
	for _, b := range [][]byte{stored, frame} {
		info, err := codec.Inspect(b)
		if err != nil {
			t.Fatalf("accepted and not inspectable: %v", err)
		}
		if info.Header != h {
			t.Fatalf("Inspect says %+v, want %+v", info.Header, h)
		}
		encoded, ok := f.Encode(nil, b, codec.Planes, &s)
		if !ok {
			continue // would not be smaller, or is encoded already
		}
		buf := make([]byte, f.MaxFrameBytes(part))
		again, _, err := f.OpenAny(buf, copy(buf, encoded), h, &s)
		if err != nil {
			t.Fatalf("encoded and not readable: %v", err)
		}
		if !bytes.Equal(again, want) {
			t.Fatal("encoding changed the frame")
		}
	}
	return true
}

// What another release, or anyone who can write to the store, says in the metadata is accepted, and then it is as good as ours: a
// worker that stores the block again must neither crash nor store something else.
func TestOtherMetadataIsAcceptedAndMadeOurs(t *testing.T) {
	f := newFormat(t, bf16Layout())
	h := headerFor(f.Layout())
	frame := sealedKV(t, f, h)
	encoded, ok := f.Encode(nil, frame, codec.Planes, new(codec.Scratch))
	if !ok {
		t.Fatal("not smaller")
	}
	newer, err := msgpack.Marshal(map[string]any{"dtype": "bf16", "writer": strings.Repeat("x", 130), "layers": 2})
	if err != nil {
		t.Fatal(err)
	}
	for name, meta := range map[string][]byte{"longer": newer, "none": {}, "no map": {0xc0}, "no msgpack": {0xc1, 0xff}, "cut off": newer[:7],
		"nested": bytes.Repeat([]byte{0x91}, 300)} {
		for kind, b := range map[string][]byte{"raw": frame, "planes": encoded} {
			t.Run(name+" "+kind, func(t *testing.T) {
				other := codec.Described(b, meta)
				if _, err := f.Open(other, h); kind == "raw" && err != nil {
					t.Fatal(err)
				}
				if !everything(t, f, other, h) {
					t.Error("refused")
				}
			})
		}
	}
}

// Encode is given frames by whoever holds some: what is none of its format is not encoded, and never a panic.
func TestEncodeRefusesWhatItCannotRead(t *testing.T) {
	f := newFormat(t, bf16Layout())
	h := headerFor(f.Layout())
	frame := sealedKV(t, f, h)
	encoded, _ := f.Encode(nil, frame, codec.Planes, new(codec.Scratch))
	other := bf16Layout()
	other.HeadDim *= 2
	g := newFormat(t, other)
	for name, b := range map[string][]byte{"nothing": nil, "header": frame[:codec.HeaderBytes], "a byte": {1}, "cut": frame[:len(frame)-1], "zeros": make([]byte, len(frame)),
		"encoded already": encoded, "another layout": sealedKV(t, g, headerFor(other))} {
		if _, ok := f.Encode(nil, b, codec.Planes, new(codec.Scratch)); ok {
			t.Errorf("%s was encoded", name)
		}
	}
}

// OpenAny says so when it is told of more bytes than there are, or of fewer than none.
func TestOpenAnyRefusesAWrongLength(t *testing.T) {
	f := newFormat(t, bf16Layout())
	h := headerFor(f.Layout())
	frame := sealedKV(t, f, h)
	for _, n := range []int{-1, len(frame) + 1} {
		if _, _, err := f.OpenAny(frame, n, h, new(codec.Scratch)); err == nil {
			t.Errorf("length %d of a buffer of %d: no error", n, len(frame))
		}
	}
}

// Frames with valid checksums whose every field and byte a stranger chose: those that are accepted go through everything.
func FuzzAccepted(f *testing.F) {
	l := bf16Layout()
	format := newFormat(f, l)
	h := headerFor(l)
	frame := sealedKV(f, format, h)
	encoded, _ := format.Encode(nil, frame, codec.Planes, new(codec.Scratch))
	off := len(frame) - len(format.Payload(frame))
	f.Add(uint16(0), uint64(0), []byte{}, frame[off:], false)
	f.Add(uint16(5), uint64(7), []byte{0x81, 0xa1, 'x', 1}, frame[off:], false)                    // another minor version
	f.Add(uint16(192), uint64(1), bytes.Repeat([]byte{0x91}, 200), encoded[off:], true)            // a byte that is zero so far
	f.Add(uint16(168), uint64(1), []byte{0xdd, 0xff, 0xff, 0xff, 0xff}, make([]byte, 4096), false) // another part
	f.Fuzz(func(t *testing.T, at uint16, value uint64, meta, payload []byte, planes bool) {
		b := frame
		if planes {
			b = encoded
		}
		head := bytes.Clone(b[:off])
		if n := int(at) % codec.HeaderBytes; n <= codec.HeaderBytes-8 {
			head[n] ^= byte(value)
			binary.LittleEndian.PutUint64(head[n:], binary.LittleEndian.Uint64(head[n:])^value>>8)
		}
		binary.LittleEndian.PutUint32(head[8:], uint32(off))
		if len(meta) > codec.MaxMetaBytes {
			meta = meta[:codec.MaxMetaBytes]
		}
		everything(t, format, codec.Described(append(head, payload...), meta), h)
	})
}

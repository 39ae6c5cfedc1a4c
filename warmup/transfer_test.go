package warmup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/worker"
)

// infoOf is what a worker of l would say.
func infoOf(l block.Layout, epoch block.Epoch) worker.WarmInfo {
	id := block.Identity{Weights: block.Digest{1}, Layout: l.Digest()}
	return worker.WarmInfo{Model: "m", Variant: id.Variant(), Weights: id.Weights, Layout: id.Layout, LayoutSpec: l, Epoch: epoch,
		BlockTokens: l.BlockTokens, BlockBytes: l.BlockBytes(), BlockParts: l.PartCount()}
}

func transferLayout() block.Layout {
	return block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 2, KVHeads: 2, HeadDim: 16, BlockTokens: 16,
		TPSize: 1, RopeBase: 10000, RopeScale: 1, Numerics: "test/1"}
}

// strange is frame as a release would have written it that has more to say in the metadata.
func strange(frame, meta []byte) []byte {
	le := binary.LittleEndian
	from, off := int(le.Uint32(frame[8:])), (codec.HeaderBytes+len(meta)+63)/64*64
	out := make([]byte, off, off+len(frame)-from)
	copy(out, frame[:codec.HeaderBytes])
	copy(out[codec.HeaderBytes:], meta)
	le.PutUint32(out[8:], uint32(off))
	le.PutUint32(out[12:], uint32(len(meta)))
	resum(out)
	return append(out, frame[from:]...)
}

// resum makes the checksum of a header right.
func resum(head []byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(head[196:], crc32.Update(crc32.Checksum(head[:196], table), table, head[codec.HeaderBytes:]))
}

// A value that workers accept can be exported, and the archive imported: one with metadata of another release neither ends the import
// of all the others, nor comes back as something else.
func TestWhatIsAcceptedIsTransferred(t *testing.T) {
	l := transferLayout()
	f, err := codec.NewFormat(l)
	if err != nil {
		t.Fatal(err)
	}
	info, ns, h := infoOf(l, 7), block.Digest{5}, block.Hash{9}
	from, to := memstore.New(memstore.Options{}), memstore.New(memstore.Options{})
	var s codec.Scratch
	want := map[string][]byte{}
	for p := range l.PartCount() {
		head := codec.Header{Identity: block.Identity{Weights: info.Weights, Layout: info.Layout}, Namespace: ns, Epoch: 7, Hash: h, Part: p}
		frame := make([]byte, f.FrameBytes(l.Part(p)))
		for i, kv := 0, f.Payload(frame); i < len(kv); i++ {
			kv[i] = byte(i % 7)
		}
		if err := f.Seal(frame, head); err != nil {
			t.Fatal(err)
		}
		encoded, ok := f.Encode(nil, frame, codec.Planes, &s)
		if !ok {
			t.Fatal("not smaller")
		}
		stored := strange(encoded, bytes.Repeat([]byte{0xc1}, 200))
		if err := from.Put(t.Context(), []store.Item{{Key: block.Key(info.Variant, 7, h, p), Value: stored}}, time.Hour); err != nil {
			t.Fatal(err)
		}
		head.Epoch = 8
		if err := f.Seal(frame, head); err != nil {
			t.Fatal(err)
		}
		encoded, _ = f.Encode(nil, frame, codec.Planes, &s)
		want[block.Key(info.Variant, 8, h, p)] = encoded
	}
	var file bytes.Buffer
	a, err := NewArchiveWriter(&file, HeaderOf(info, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	var moved Transfer
	x := exporter{format: f, store: from, info: info, out: a}
	if err := errors.Join(x.blocks(t.Context(), []block.Hash{h}, ns, &moved), a.Close()); err != nil || moved.Missing != 0 {
		t.Fatalf("export: %v, %+v", err, moved)
	}
	r, err := NewArchiveReader(&file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Import(t.Context(), r, to, infoOf(l, 8), time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	for key, value := range want {
		buf := make([]byte, len(value)+store.Spare)
		for n, err := range to.Get(t.Context(), []string{key}, [][]byte{buf}) {
			if err != nil || !bytes.Equal(buf[:n], value) {
				t.Errorf("%s: %v, %d bytes, want %d", key, err, n, len(value))
			}
		}
	}
}

// An archive of another major version is named as such: it is not damaged.
func TestArchiveOfAnotherWireFormat(t *testing.T) {
	l := transferLayout()
	f, err := codec.NewFormat(l)
	if err != nil {
		t.Fatal(err)
	}
	info := infoOf(l, 7)
	frame := make([]byte, f.FrameBytes(l.Part(0)))
	if err := f.Seal(frame, codec.Header{Identity: block.Identity{Weights: info.Weights, Layout: info.Layout}}); err != nil {
		t.Fatal(err)
	}
	frame[4]++
	var file bytes.Buffer
	a, err := NewArchiveWriter(&file, HeaderOf(info, time.Now()))
	if err := errors.Join(err, a.Add(frame), a.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := NewArchiveReader(&file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Import(t.Context(), r, memstore.New(memstore.Options{}), info, time.Hour, nil)
	if !errors.Is(err, ErrOther) || errors.Is(err, ErrArchive) {
		t.Errorf("got %v, want ErrOther", err)
	}
}

// What a worker says of itself is checked: one of another release would have everything missing, and one that counts no parts ended in a division
// by zero.
func TestTransferChecksTheWorker(t *testing.T) {
	l := transferLayout()
	old, none, broken := infoOf(l, 7), infoOf(l, 7), infoOf(l, 7)
	old.Layout[0] ^= 1
	none.BlockParts = 0
	broken.LayoutSpec.Layers = 0
	for name, c := range map[string]struct {
		info worker.WarmInfo
		want error
	}{"other wire format": {old, ErrWorker}, "no layers": {broken, ErrWorker}, "no parts": {none, nil}} {
		var file bytes.Buffer
		a, err := NewArchiveWriter(&file, HeaderOf(infoOf(l, 7), time.Now()))
		if err := errors.Join(err, a.Close()); err != nil {
			t.Fatal(err)
		}
		r, err := NewArchiveReader(&file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Import(t.Context(), r, memstore.New(memstore.Options{}), c.info, time.Hour, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: import: %v, want %v", name, err, c.want)
		}
		if c.want == nil {
			continue
		}
		if _, err := new(Plan).Export(t.Context(), nil, memstore.New(memstore.Options{}), c.info, &file, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: export: %v, want %v", name, err, c.want)
		}
	}
}

// Whatever frame an archive has: an error, or a value that a worker accepts and that can go into the next archive.
func FuzzImportFrame(f *testing.F) {
	l := transferLayout()
	format, err := codec.NewFormat(l)
	if err != nil {
		f.Fatal(err)
	}
	info := infoOf(l, 8)
	frame := make([]byte, format.FrameBytes(l.Part(0)))
	if err := format.Seal(frame, codec.Header{Identity: block.Identity{Weights: info.Weights, Layout: info.Layout}, Epoch: 7}); err != nil {
		f.Fatal(err)
	}
	f.Add(frame, []byte{0xc1})
	f.Add(frame[:codec.HeaderBytes], []byte{})
	f.Fuzz(func(t *testing.T, raw, meta []byte) {
		if len(raw) >= codec.HeaderBytes && int(binary.LittleEndian.Uint32(raw[8:])) <= len(raw) && len(meta) <= codec.MaxMetaBytes {
			raw = strange(raw, meta)
		}
		m := importer{format: format, info: info}
		item, err := m.item(raw)
		if err != nil {
			return
		}
		if _, err := m.item(item.Value); err != nil {
			t.Errorf("imported and then refused: %v", err)
		}
	})
}

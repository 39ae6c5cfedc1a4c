package warmup

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/kvtier/kvtier/block"
)

func archiveOf(t testing.TB, frames ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	layout := block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 2, KVHeads: 1, HeadDim: 4, BlockTokens: 4, TPSize: 1, RopeScale: 1, Numerics: "test"}
	a, err := NewArchiveWriter(&b, ArchiveHeader{Model: "m", Label: "l", Weights: block.Digest{1}, Layout: layout, Root: "r"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := a.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// frames reads an archive to its end.
func frames(b []byte) (all [][]byte, err error) {
	a, err := NewArchiveReader(bytes.NewReader(b))
	for err == nil {
		var f []byte
		if f, err = a.Next(); err == nil {
			all = append(all, bytes.Clone(f))
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, err
}

func TestArchive(t *testing.T) {
	want := [][]byte{[]byte("one"), bytes.Repeat([]byte{7}, 70_000), []byte("three")}
	b := archiveOf(t, want...)
	got, err := frames(b)
	if err != nil || len(got) != 3 || !bytes.Equal(got[1], want[1]) || !bytes.Equal(got[2], want[2]) {
		t.Fatalf("%d frames, %v", len(got), err)
	}
	// Any byte that is lost or changed is noticed, wherever it was.
	for i := 0; i < len(b); i += 97 {
		if _, err := frames(b[:i]); !errors.Is(err, ErrArchive) {
			t.Fatalf("cut to %d of %d bytes: %v", i, len(b), err)
		}
		damaged := bytes.Clone(b)
		damaged[i] ^= 0x10
		if _, err := frames(damaged); err == nil {
			t.Fatalf("damage at byte %d is not noticed", i)
		}
	}
	if _, err := frames(append(bytes.Clone(b), 0)); !errors.Is(err, ErrArchive) {
		t.Errorf("a byte behind the end: %v", err)
	}
}

// FuzzArchive: whatever a file holds, reading ends, with frames within the limits or with ErrArchive.
func FuzzArchive(f *testing.F) {
	f.Add(archiveOf(f, []byte("one")))
	f.Add(archiveOf(f))
	f.Add([]byte("KVTWARM1\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := frames(b); err != nil && !errors.Is(err, ErrArchive) {
			t.Fatalf("%v is no ErrArchive", err)
		}
	})
}

package codec_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"strconv"
	"testing"

	"github.com/kvtier/kvtier/codec"
)

// Race 25: releases side by side. A reader refuses another major version and any must-understand flag it does not know, as a version and
// not as damage, so that the value is left alone; a newer minor version is read.
func TestRaceWireVersionsMeet(t *testing.T) {
	l := smallLayout()
	f := newFormat(t, l)
	h := headerFor(l)
	off := f.FrameBytes(l.Part(0)) - l.PartBytes(l.Part(0))
	for name, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"major 1":        {func(b []byte) { b[4] = 1 }, codec.ErrVersion},
		"major 3":        {func(b []byte) { b[4] = 3 }, codec.ErrVersion},
		"major 0":        {func(b []byte) { b[4] = 0 }, codec.ErrVersion},
		"a flag":         {func(b []byte) { b[6] = 1 }, codec.ErrVersion},
		"the last flag":  {func(b []byte) { b[7] = 0x80 }, codec.ErrVersion},
		"other encoding": {func(b []byte) { b[176] = 9 }, codec.ErrVersion},
		"minor 7":        {func(b []byte) { b[5] = 7 }, nil},
	} {
		frame := sealed(t, f, h)
		c.change(frame)
		table := crc32.MakeTable(crc32.Castagnoli)
		binary.LittleEndian.PutUint32(frame[196:], crc32.Update(crc32.Checksum(frame[:196], table), table, frame[200:off]))
		if _, err := f.Open(frame, h); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// What a release with wire format 1 has stored is a miss, never damage: it lies under other names, and if it should lie under ours it is left
// alone. testdata/frame-v1.hex is what that release wrote.
func TestFramesOfVersion1AreNeitherReadNorDamaged(t *testing.T) {
	dump, err := os.ReadFile("testdata/frame-v1.hex")
	if err != nil {
		t.Fatal(err)
	}
	var old []byte
	for line := range bytes.Lines(dump) { // hex.Dump: offset, 16 bytes, text
		for digits := range bytes.FieldsSeq(line[10:58]) {
			b, err := strconv.ParseUint(string(digits), 16, 8)
			if err != nil {
				t.Fatal(err)
			}
			old = append(old, byte(b))
		}
	}
	l := smallLayout()
	f := newFormat(t, l)
	for name, open := range map[string]func() error{
		"Open": func() error { _, err := f.Open(old, headerFor(l)); return err },
		"OpenAny": func() error {
			_, _, err := f.OpenAny(bytes.Clone(old), len(old), headerFor(l), new(codec.Scratch))
			return err
		},
		"Inspect": func() error { _, err := codec.Inspect(old); return err },
	} {
		if err := open(); !errors.Is(err, codec.ErrVersion) {
			t.Errorf("%s: %v, want ErrVersion", name, err)
		}
	}
	if digest := l.Digest(); bytes.Equal(old[64:96], digest[:]) {
		t.Error("both versions have one layout digest, and so one name for different values")
	}
}

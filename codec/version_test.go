package codec_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
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
		"major 2":        {func(b []byte) { b[4] = 2 }, codec.ErrVersion},
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

package codec

import (
	"encoding/binary"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/zeebo/xxh3"

	"github.com/kvtier/kvtier/block"
)

// Meta describes a value for people and tools. It repeats the layout, whose digest is in the header, in words; nothing on a
// request's path reads it. Fields are scalars only: decoding can neither nest nor allocate by a forged length.
type Meta struct {
	DType       string `msgpack:"dtype"`
	Order       string `msgpack:"order"`
	Layers      int    `msgpack:"layers"`
	KVHeads     int    `msgpack:"kv_heads"`
	HeadDim     int    `msgpack:"head_dim"`
	BlockTokens int    `msgpack:"block_tokens"`
	TPRank      int    `msgpack:"tp_rank"`
	TPSize      int    `msgpack:"tp_size"`
	Numerics    string `msgpack:"numerics"`
	Quant       string `msgpack:"quant,omitempty"` // empty for none
}

// Info is everything that a stored value says of itself.
type Info struct {
	Header       Header
	Meta         Meta
	MetaError    error // why Meta is not filled in: another release, or a stranger, described the layout otherwise
	Major, Minor int
	Encoding     Encoding
	PayloadBytes int // as stored
}

// Inspect describes a frame without expecting anything of it: for tools. It verifies both checksums and fails with ErrCorrupt or
// ErrVersion. Whatever Open accepts can be inspected: metadata that does not decode is no reason to refuse the rest.
func Inspect(frame []byte) (Info, error) {
	off, err := envelope(frame)
	if err != nil {
		return Info{}, err
	}
	le := binary.LittleEndian
	if got, want := xxh3.Hash(frame[off:]), le.Uint64(frame[offSum:]); got != want {
		return Info{}, corrupt(FieldPayloadSum, got, want)
	}
	info := Info{Header: parse(frame), Major: int(frame[offMajor]), Minor: int(frame[offMinor]), Encoding: Encoding(frame[offEncoding]),
		PayloadBytes: len(frame) - off}
	metaLen := int(le.Uint32(frame[offMetaLen:]))
	if err := msgpack.Unmarshal(frame[HeaderBytes:HeaderBytes+metaLen], &info.Meta); err != nil {
		info.Meta, info.MetaError = Meta{}, fmt.Errorf("codec: metadata: %w", err)
	}
	return info, nil
}

func metaOf(l block.Layout) Meta {
	m := Meta{
		DType: l.DType.String(), Order: l.Order.String(), Layers: l.Layers, KVHeads: l.KVHeads, HeadDim: l.HeadDim,
		BlockTokens: l.BlockTokens, TPRank: l.TPRank, TPSize: l.TPSize, Numerics: l.Numerics,
	}
	if l.Quant != block.QuantNone {
		m.Quant = l.Quant.String()
	}
	return m
}

func encodeMeta(m Meta) ([]byte, error) {
	b, err := msgpack.Marshal(&m) // fields in order of declaration: deterministic
	if err != nil {
		return nil, fmt.Errorf("codec: encode metadata: %w", err)
	}
	if len(b) > MaxMetaBytes {
		return nil, fmt.Errorf("codec: metadata has %d bytes, at most %d are allowed", len(b), MaxMetaBytes)
	}
	return b, nil
}

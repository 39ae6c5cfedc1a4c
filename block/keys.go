package block

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// KeyPrefix starts every data key: kvt1 is the version of the schema of names, which outlives that of the frame.
const KeyPrefix = "kvt1:d:"

// LeasePrefix starts the key of every claim on a block that is being computed.
const LeasePrefix = "kvt1:l:"

// hashChars is the length of a hash in a key.
const hashChars = (HashSize*8 + 5) / 6

// VariantPrefix is what the keys of every epoch of v start with.
func VariantPrefix(v Variant) string { return KeyPrefix + v.String() + ":" }

// EpochPrefix is what the keys of one epoch of v start with.
func EpochPrefix(v Variant, e Epoch) string { return epochPrefix(KeyPrefix, v, e) }

func epochPrefix(kind string, v Variant, e Epoch) string {
	b := make([]byte, 0, 64) // 7 + 16 + 1 + 20 + 1 at most
	b = append(b, kind...)
	b = append(base32Lower.AppendEncode(b, v[:]), ':')
	return string(append(strconv.AppendUint(b, uint64(e), 10), ':'))
}

// Key is the name of one stored value: kvt1:d:<variant>:<epoch>:<hash, base64url>:<part>. It carries no cluster hash
// tag, so that the blocks of one prompt spread over all shards. [Keys] makes many of them.
func Key(v Variant, e Epoch, h Hash, part int) string { return NewKeys(v, e, 0).Key(h, part) }

// LeaseKey is the name of the claim on a block that is being computed: kvt1:l:<variant>:<epoch>:<hash, base64url>.
func LeaseKey(v Variant, e Epoch, h Hash) string {
	return epochPrefix(LeasePrefix, v, e) + h.String()
}

// Keys makes the names of the values of one generation: what they have in common is written once. It is immutable, comparable, and safe
// for concurrent use.
type Keys struct {
	prefix string
	parts  int
}

// NewKeys is for blocks of a variant and epoch that have the given number of parts.
func NewKeys(v Variant, e Epoch, parts int) Keys {
	return Keys{prefix: EpochPrefix(v, e), parts: parts}
}

// Key names one part of the block h.
func (k Keys) Key(h Hash, part int) string {
	b := make([]byte, 0, len(k.prefix)+hashChars+1+4)
	b = append(b, k.prefix...)
	b = base64.RawURLEncoding.AppendEncode(b, h[:])
	b = append(b, ':')
	return string(strconv.AppendInt(b, int64(part), 10))
}

// Append appends to dst the names of all parts of each of hashes, block by block. They are slices of one string: keep none of them
// for longer than the others.
func (k Keys) Append(dst []string, hashes []Hash) []string {
	var text strings.Builder
	text.Grow(len(hashes) * k.blockChars())
	var hash [hashChars]byte
	var digits [20]byte
	if n := len(dst) + len(hashes)*k.parts; n > cap(dst) {
		dst = append(make([]string, 0, n), dst...)
	}
	for i := range hashes {
		base64.RawURLEncoding.Encode(hash[:], hashes[i][:])
		for p := range k.parts {
			at := text.Len()
			text.WriteString(k.prefix)
			text.Write(hash[:])
			text.WriteByte(':')
			text.Write(strconv.AppendInt(digits[:0], int64(p), 10))
			dst = append(dst, text.String()[at:]) // what follows goes behind it, into the same memory
		}
	}
	return dst
}

// blockChars is the length of the names of one block's parts.
func (k Keys) blockChars() int {
	n := k.parts * (len(k.prefix) + hashChars + 2)
	for from := 10; from < k.parts; from *= 10 { // one more digit from here on
		n += k.parts - from
	}
	return n
}

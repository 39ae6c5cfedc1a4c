package block

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
)

// Digest is a SHA-256 sum: of a model's weights, of a layout, of a namespace.
type Digest [sha256.Size]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short is the first 12 hex digits: for tables and logs, never for identity.
func (d Digest) Short() string { return hex.EncodeToString(d[:6]) }

// IsZero reports whether d is unset. A zero digest identifies nothing and is refused everywhere.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText encodes d as 64 hex digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText decodes 64 hex digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("block: digest has %d characters, want %d hex digits", len(text), hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("block: digest is not hexadecimal: %w", err)
	}
	return nil
}

// Identity says what computed a piece of K/V: which weights, in which layout.
type Identity struct {
	Weights Digest // SHA-256 of the manifest of the loaded tensors and adapters
	Layout  Digest // Layout.Digest
}

// Variant derives the short name under which entries of this identity are stored. The full digests travel in
// every value's header and are compared there: the name only has to spread keys. It costs a SHA-256: derive it once
// for each generation, not for each key ([Keys]).
func (id Identity) Variant() Variant {
	b := make([]byte, 0, 80) // on the stack
	b = append(b, "kvtier1"...)
	b = append(b, id.Weights[:]...)
	sum := sha256.Sum256(append(b, id.Layout[:]...))
	return Variant(sum[:10])
}

// Variant is the first 80 bits of SHA-256("kvtier1" ‖ weights ‖ layout); as text, 16 lower-case base32 digits.
type Variant [10]byte

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func (v Variant) String() string { return base32Lower.EncodeToString(v[:]) }

// MarshalText encodes v as in String.
func (v Variant) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (v *Variant) UnmarshalText(text []byte) error {
	if len(text) != base32Lower.EncodedLen(len(v)) {
		return fmt.Errorf("block: variant has %d characters, want %d base32 digits", len(text), base32Lower.EncodedLen(len(v)))
	}
	if _, err := base32Lower.Decode(v[:], text); err != nil {
		return fmt.Errorf("block: variant is not lower-case base32: %w", err)
	}
	return nil
}

// Epoch is the generation of a variant's entries. It only grows; raising it makes every earlier entry unreachable.
type Epoch uint64

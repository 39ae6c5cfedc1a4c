package codec

import (
	"errors"
	"fmt"
)

// What can be wrong with a value. To a cache each of them is a miss, counted under its own reason.
var (
	// ErrCorrupt means that the bytes are not what was written: truncated, damaged, or no value of ours at all.
	ErrCorrupt = errors.New("codec: corrupt value")
	// ErrVersion means that a newer or older format wrote the value.
	ErrVersion = errors.New("codec: value of another format version")
	// ErrForeign means an intact value of other weights, layout, tenant, epoch or place in the chain.
	ErrForeign = errors.New("codec: value of another identity")
)

// Field names what a value was refused for. Together with the kind of error it tells a late write of an ended epoch from a collision.
type Field string

// Fields of an identity: with ErrForeign, the first in this order that is not the expected one.
const (
	FieldWeights   Field = "weights digest"
	FieldLayout    Field = "layout digest"
	FieldNamespace Field = "namespace"
	FieldEpoch     Field = "epoch"
	FieldAct       Field = "act"
	FieldHash      Field = "chain hash"
	FieldPart      Field = "part"
)

// Other fields: with ErrVersion the first three, with ErrCorrupt the others.
const (
	FieldMajor         Field = "major version"
	FieldFlags         Field = "must-understand flags"
	FieldEncoding      Field = "payload encoding"
	FieldLength        Field = "length"
	FieldMagic         Field = "magic"
	FieldMetaLength    Field = "metadata length"
	FieldPayloadOffset Field = "payload offset"
	FieldHeaderSum     Field = "header checksum"
	FieldParts         Field = "parts"
	FieldTokens        Field = "tokens"
	FieldOffset        Field = "offset in the block"
	FieldPayloadLength Field = "payload length"
	FieldDecodedLength Field = "decoded length"
	FieldPayloadSum    Field = "payload checksum"
	FieldPayload       Field = "encoded payload"
)

// Error says which field of a value was refused: errors.AsType finds it, errors.Is the kind. It carries numbers, never payload.
type Error struct {
	kind      error
	Field     Field
	Got, Want uint64 // meaningless for digests
}

func (e *Error) Error() string {
	if errors.Is(e.kind, ErrForeign) {
		return fmt.Sprintf("%v: %s differs", e.kind, e.Field)
	}
	return fmt.Sprintf("%v: %s is %#x, want %#x", e.kind, e.Field, e.Got, e.Want)
}

func (e *Error) Unwrap() error { return e.kind }

func corrupt(field Field, got, want uint64) error {
	return &Error{kind: ErrCorrupt, Field: field, Got: got, Want: want}
}

func version(field Field, got, want uint64) error {
	return &Error{kind: ErrVersion, Field: field, Got: got, Want: want}
}

func foreign(field Field) error { return &Error{kind: ErrForeign, Field: field} }

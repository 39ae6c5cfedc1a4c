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

// Error says which field of a value was refused. It carries numbers, never payload.
type Error struct {
	kind      error
	Field     string
	Got, Want uint64 // meaningless for digests
}

func (e *Error) Error() string {
	if errors.Is(e.kind, ErrForeign) {
		return fmt.Sprintf("%v: %s differs", e.kind, e.Field)
	}
	return fmt.Sprintf("%v: %s is %#x, want %#x", e.kind, e.Field, e.Got, e.Want)
}

func (e *Error) Unwrap() error { return e.kind }

func corrupt(field string, got, want uint64) error {
	return &Error{kind: ErrCorrupt, Field: field, Got: got, Want: want}
}

func foreign(field string) error { return &Error{kind: ErrForeign, Field: field} }

// Package engine is the seam between the cache and whatever computes attention. An engine holds one set of weights; a
// sequence is one conversation's state in it. The conformance suite in enginetest holds every implementation to this text.
package engine

import (
	"context"
	"errors"

	"github.com/kvtier/kvtier/block"
)

// Errors that callers act on.
var (
	// ErrContextFull means that the tokens do not fit the engine's context.
	ErrContextFull = errors.New("engine: context is full")
	// ErrNotImported means that Skip would pass over positions whose K/V was not imported completely.
	ErrNotImported = errors.New("engine: positions to skip have not been imported")
	// ErrClosed means that the engine or sequence has been closed.
	ErrClosed = errors.New("engine: closed")
	// ErrUnavailable means that something outside of this process, without which the engine cannot compute, does not answer as it should.
	ErrUnavailable = errors.New("engine: not available")
)

// Tokenizer turns text into the model's tokens and back. Implementations are safe for concurrent use.
type Tokenizer interface {
	// Encode returns the tokens of text, without adding any that the text does not contain.
	Encode(text string) []int32
	// Decode returns the text of tokens. Bytes of an incomplete UTF-8 sequence are returned as they are.
	Decode(tokens []int32) string
	// EOS is the token that ends a text, or -1 if the model has none.
	EOS() int32
	// Vocab is the number of tokens; valid tokens are 0 to Vocab()-1.
	Vocab() int
}

// Engine holds the weights of one model. Its weights never change during its life: new weights are a new Engine. It is
// safe for concurrent use.
type Engine interface {
	// Layout describes the K/V that sequences import and export.
	Layout() block.Layout
	// Identity is computed from the bytes that were loaded.
	Identity() block.Identity
	// Name is the model's name as its file states it; for people, not for identity.
	Name() string
	// ContextTokens is the longest sequence.
	ContextTokens() int
	Tokenizer() Tokenizer
	NewSequence() (Sequence, error)
	// Close releases the weights. Sequences must be closed before.
	Close() error
}

// Sequence is the state of one sequence of tokens: K and V of every token so far. It is not safe for concurrent use.
//
// Batch invariance: K, V and logits of a token have the same bits however the tokens before it were split over calls, whether
// they were computed or imported, and whatever other sequences do meanwhile.
type Sequence interface {
	// Len is the number of tokens whose K/V the sequence holds from position 0 on without a hole.
	Len() int
	// Prefill computes the given tokens at positions Len() onward and returns the logits of the last: Vocab() numbers,
	// valid until the next call. It looks at ctx now and then; on error Len() counts the tokens finished so far.
	Prefill(ctx context.Context, tokens []int32) ([]float32, error)
	// Import places one part of the K/V of positions pos to pos+BlockTokens-1, laid out as Layout says. Any position
	// within the context is allowed, also one after a hole; it counts only once Skip reaches it. kv is not kept.
	Import(pos int, part block.Part, kv []byte) error
	// Skip advances Len by n tokens over imported positions, ErrNotImported if a part of them is missing.
	Skip(n int) error
	// Export writes one part of the K/V of positions pos to pos+BlockTokens-1, all below Len, to dst, which has exactly
	// Layout.PartBytes(part) bytes. Export after Import gives back the same bytes.
	Export(pos int, part block.Part, dst []byte) error
	// Close releases the state.
	Close() error
}

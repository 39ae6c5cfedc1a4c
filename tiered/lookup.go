package tiered

import (
	"context"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
)

// Sink is where Bring puts K/V: one sequence of tokens in an engine. Bring calls it from the caller's goroutine only.
type Sink interface {
	// Len is the number of tokens that count, from position 0 on without a hole.
	Len() int
	// Place writes one part of the K/V of positions pos to pos+BlockTokens-1, which need not count yet and may lie behind a hole. kv is not kept.
	Place(pos int, p block.Part, kv []byte) error
	// Skip makes the next n positions count; all of them have been placed.
	Skip(n int) error
	// Compute brings Len to the given position by computing, from Len on. Nothing that was placed behind that is touched.
	Compute(ctx context.Context, to int) error
}

// Lookup says what is asked of a Cache, by whom, and what it may cost.
type Lookup struct {
	// View is the cache's view when the request began: K/V of another generation is never used for it.
	View View
	// Namespace of the tenant whose chain it is.
	Namespace block.Digest
	// Chain are the hashes of the prompt's blocks that need not be computed, from the root on. It is the caller's again when the call returns.
	Chain []block.Hash
	// Held is how many blocks at the front the caller has already.
	Held int

	// Mode says what is done about blocks that only the remote tier has.
	Mode gate.Mode
	// Prefill says how fast the sink computes; nil if nobody knows. The sink adds to it as it computes.
	Prefill *gate.PrefillMeter
	// Wait is how long to wait for remote blocks altogether with gate.Always; 0 for Options.FetchTimeout.
	Wait time.Duration
	// Passing leaves the hot tier as it is: what is read does not become hot, and what is hot not younger. For jobs beside the traffic.
	Passing bool
	// Whole says that the sink computes in one piece only: it is asked for nothing, and gets the run at the front.
	Whole bool
}

// Outcome says where the tokens of a Lookup came from. Tokens that it does not count are still to be computed.
type Outcome struct {
	Hot      int // tokens from the hot tier
	Remote   int // tokens from the remote tier
	Computed int // tokens that the sink was asked to compute meanwhile
	// Misses counts tokens that neither the caller held nor a tier has served, by reason.
	Misses [Reasons]int
	// Miss is what there is to say about them in one word: what went wrong first, else what was not there, else MissGate.
	Miss Reason
	// Degraded is when, since the call began, the remote tier turned out to be sick; 0 if it did not.
	Degraded time.Duration
}

// scope is what K/V may be used together: one generation's, of one tenant behind its last purge.
type scope struct {
	gen Generation
	ns  block.Digest
	cut block.Cut // purge of the tenant that it was computed behind
}

func (l *Lookup) scope() scope {
	return scope{l.View.Generation, l.Namespace, l.View.Cuts[l.Namespace]}
}

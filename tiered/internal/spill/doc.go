// Package spill moves blocks towards the remote tier: a queue that is bounded in bytes, and a storer that empties it, batch by batch.
// It knows neither clock nor goroutines: whoever owns it calls Turn, with the time.
//
// Words:
//
//   - A block is K/V of some tokens; its chain is the blocks before it and itself.
//   - A run is blocks of one chain that follow each other, in one batch. What becomes of one run says nothing about another.
//   - A batch is the runs of one turn: the storer asks what the remote tier has of them, and writes what is missing.
//   - To offer is to hand a block to the queue. A block leaves it with an End: stored, there already, or dropped for a reason.
//   - To park is to set aside what failed of a run, until a pause of its own is over; then its first block is tried. The rest waits for that.
//   - A block is ready if it is queued and not parked, and taken while it is in a batch.
//
// Invariants:
//
//   - the queue never holds more bytes than its bound, the batch included, and Offer never waits;
//   - a full queue drops its deepest block: a chain is useful from its root only. What is parked makes room first where it has more than half;
//   - a block is written in the batch of the block before it or later, and only if that one is there or in the batch, so that stored chains
//     are whole from the root but for what the remote tier refuses for the time being, or loses;
//   - nothing healthy waits for what is sick longer than twice PauseMax and the turns in between: a batch is judged block by block, and what
//     failed is parked and tried again after PauseMax at the latest. Where it is known which part of the tier is sick, nothing else waits;
//   - every block that was offered ends once.
package spill

import "github.com/kvtier/kvtier/block"

// Block is what a queue holds. Its methods are called often and under locks: they have to be cheap and must not call the queue.
type Block[B any] interface {
	comparable
	Hash() block.Hash
	Before() block.Hash // the block before it in its chain, if its depth is not 0
	Depth() int         // blocks before it in its chain
	Cost() int64        // bytes that it takes up
	// Twin reports whether the two, whose hashes are equal, are of one generation and tenant: then one stands for the other.
	Twin(B) bool
}

// End says how a block left the queue.
type End uint8

// Ends of a block.
const (
	Stored     End = iota // written by this storer
	Had                   // the remote tier had it
	Overflow              // the queue was full, and this was its deepest block
	Stale                 // it may not be stored any more: its generation ended
	Shutdown              // still queued at the end
	Incomplete            // the block before it is neither stored nor queued: without that one nobody finds it
	ends
)

// FirstDrop is the first End that is a loss; those from it on are numbered without a gap, up to Drops of them.
const (
	FirstDrop = Overflow
	Drops     = int(ends - Overflow)
)

func (e End) String() string {
	if e < ends {
		return [ends]string{"stored", "had", "overflow", "stale", "shutdown", "incomplete"}[e]
	}
	return "unknown"
}

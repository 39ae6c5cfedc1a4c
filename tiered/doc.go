// Package tiered is the cache: a byte-bounded hot tier in the process, a remote tier behind a store.Store, and the movement
// between them.
//
// A request calls Bring with the chain of its prompt and a Sink, its sequence in an engine. The cache drives: it places what is hot, then of
// what the remote tier has as much as pays, and has the sink compute meanwhile. Callers in other processes have no Sink; they Load, copy,
// and ask Release whether the copy counts. What was computed comes back with Put, which makes it hot and queues it for the remote tier.
// Invariants:
//
//   - every block belongs to one Generation (what computed it, and the epoch it was computed in); it is kept and stored only while that
//     generation is the current one, and counts only after one more comparison behind the last byte that was placed;
//   - a block is read-only from the moment it is sealed, and its memory is reused only when nobody holds it any more;
//   - the hot tier never holds more bytes than its bound, the spill queue and running fills never more than theirs;
//   - nothing here waits for the remote tier on behalf of a computation: a fetch ends at its deadline, a full queue drops and counts;
//   - whatever is wrong with the remote tier or with a value in it is a miss with a reason, never an error.
package tiered

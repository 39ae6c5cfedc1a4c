// Package tiered is the cache: a byte-bounded hot tier in the process, a remote tier behind a store.Store, and the movement
// between them.
//
// A request opens a Fetch over the chain of its prompt: blocks come first from the hot tier, then from the remote tier, in chain
// order, until the first miss. What the request computed itself it hands in with Put, which makes it hot and queues it
// for the remote tier. Invariants:
//
//   - every block belongs to one Generation (what computed it, and the epoch it was computed in); it is handed out, kept and
//     stored only while that generation is the current one, compared again at each hand-over;
//   - a block is read-only from the moment it is sealed, and its memory is reused only when nobody holds it any more;
//   - the hot tier never holds more bytes than its bound, the spill queue and running fills never more than theirs;
//   - nothing here waits for the remote tier on behalf of a computation: a fetch ends at its deadline, a full queue drops and counts;
//   - whatever is wrong with the remote tier or with a value in it is a miss with a reason, never an error.
package tiered

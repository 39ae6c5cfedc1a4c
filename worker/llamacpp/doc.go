// Package llamacpp makes an unmodified llama-server (llama.cpp) an engine: a worker beside it gives it K/V that other workers have
// computed. Prompts are tokenised and completed over HTTP; K/V goes in and out through the files that the server itself writes and
// reads in its slot directory (--slot-save-path). Invariants kept here:
//
//   - whatever cannot be understood is not used: a slot file of another format, a server of another version, other weights behind the
//     same address, a full directory or a restore that fails lead to plain serving without a cache, with one line that says why;
//   - K/V of different weights or arithmetic never meets. Identity is made of the model file's SHA-256, the server's version, the
//     element type of K/V, and what the server computed for a fixed prompt (canary.go), which shows every flag that changes numbers.
//     A server that was restarted is noticed before its next answer is used, and has to compute that prompt again;
//   - slots are shared by sequences of one scope only, so that tenants and purges are kept apart in the server's own memory too;
//   - no answer of the server and no file makes this package panic or allocate more than a small multiple of what it was sent.
//
// Batch invariance holds only within rounding: llama.cpp picks kernels by the shape of a batch, so that K/V computed beside other
// sequences, or in other pieces, can differ in the last bit of binary16. A prefix that is imported has the bits that its first computation had.
//
// The worker must be the only client that uses the server's slots. Others do no harm to outputs, but evict what is kept there.
package llamacpp

// Package quant makes an engine's K/V enter the cache in eight bits: half the bytes of 16-bit floats in the hot tier, on the wire and in Redis.
//
// It is lossy, and therefore off by default and an identity of its own: the layout, and with it the variant, every key and every value's
// header, differ from those of the same engine without it, so that exact and quantised workers share nothing.
//
// Invariants:
//
//   - a sequence without cached tokens computes the bits that the engine itself computes: only what passes through Import has been rounded;
//   - what was imported and is exported again has the same bytes, for all bytes that an export has made: errors do not add up;
//   - output depends on which tokens were reused and not on where they came from: the hot tier, Redis and the wire hold the same bytes.
package quant

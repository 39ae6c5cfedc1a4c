// Package enginetest holds every implementation of engine.Engine to its contract. Invariants of the suite:
//
//   - it knows an engine only through the interface, and asks only for what the interface promises;
//   - comparisons of logits and K/V are of bits, never within a tolerance: sharing K/V between workers is correct only if it
//     changes no output at all.
package enginetest

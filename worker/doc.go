// Package worker is the inference worker: an engine, a cache in front of it, and the rules by which the two meet.
//
// A request hashes its prompt into a chain of blocks, imports the longest run that the cache has, computes the rest and hands what it
// computed back to the cache. Invariants:
//
//   - output with the cache is token-identical to output without it: at least the last prompt token is always computed, and a
//     block is imported only whole and only behind its predecessors;
//   - resident weights change only in SwapWeights, while no request runs; K/V carries the identity of the weights that computed it;
//   - whatever happens to the store or to the coordinator, requests are answered: then from the hot tier and by computing.
package worker

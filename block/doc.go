// Package block is the vocabulary of the cache: what a block of K/V is, who computed it, and under which name it is stored.
//
// A transformer layer turns every token into a key and a value vector per KV head. A block is the K and V of BlockTokens
// consecutive tokens over all layers. Invariants kept here:
//
//   - two blocks have equal chain hashes only if weights, layout, tenant and every token up to their end are equal;
//   - a part is a contiguous slice of its block, and parts cover the block exactly;
//   - no encoding in this package depends on map order, machine or process.
//
// The package has no dependencies but the standard library.
package block

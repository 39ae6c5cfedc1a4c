package tiered

import "github.com/kvtier/kvtier/block"

// HotBlocks counts the blocks at the front of hashes that Bring would find hot at this moment. It neither pins nor touches them, and asks no
// store.
func (c *Cache) HotBlocks(v View, hashes []block.Hash) int {
	return c.hot.count(&v.Generation, hashes)
}

// count is the length of the longest run of hot blocks at the front of hashes.
func (h *hot) count(g *Generation, hashes []block.Hash) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.mu.gen != *g {
		return 0
	}
	for i := range hashes {
		if h.mu.blocks[hashes[i]] == nil {
			return i
		}
	}
	return len(hashes)
}

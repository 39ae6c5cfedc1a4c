package tiered

import (
	"sync/atomic"

	"github.com/kvtier/kvtier/block"
)

// names makes the names of stored values. What the names of one generation have in common costs a SHA-256, and is made once.
type names struct {
	parts int
	last  atomic.Pointer[named]
}

type named struct {
	id    block.Identity
	epoch block.Epoch
	keys  block.Keys
}

func (n *names) of(g *Generation) block.Keys {
	l := n.last.Load()
	if l == nil || l.id != g.Identity || l.epoch != g.Epoch {
		l = &named{g.Identity, g.Epoch, block.NewKeys(g.Identity.Variant(), g.Epoch, n.parts)}
		n.last.Store(l) // requests of the generation before are few, and end
	}
	return l.keys
}

// keys are the names under which blocks are stored, part by part.
func (c *Cache) keys(g *Generation, hashes []block.Hash) []string {
	return c.names.of(g).Append(nil, hashes)
}

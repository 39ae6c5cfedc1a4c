package tiered

import (
	"context"

	"github.com/kvtier/kvtier/block"
)

// Found says where a block is at this moment, and why it is nowhere.
type Found struct {
	Tier string // "hot", "remote" or ""
	Why  Reason // MissNone if it is somewhere
}

// Explain looks up a whole chain for people. It asks what a request would ask, the remote tier included, and changes, counts and reads nothing.
// hot and remote are how many blocks a request would find in each.
func (c *Cache) Explain(ctx context.Context, v View, ns block.Digest, hashes []block.Hash) (all []Found, hot, remote int) {
	all = make([]Found, len(hashes))
	now := c.View()
	sc := scope{v.Generation, ns, v.Cuts[ns]}
	why := sc.differs(now)
	access := min(now.Access, v.Access)
	if why == MissNone && access == AccessNone {
		why = MissUnshared
	}
	if why == MissNone {
		hot = c.HotBlocks(v, hashes)
	}
	switch {
	case why != MissNone || hot == len(hashes):
	case c.remote == nil || access != AccessShared:
		why = MissUnshared
	case !c.admits():
		why = MissBreaker
	default:
		remote, why = c.probe(ctx, &sc, hashes[hot:])
	}
	for i := range all {
		switch {
		case i < hot:
			all[i].Tier = Hot.String()
		case i < hot+remote:
			all[i].Tier = Remote.String()
		case why.Absent() && (i > hot+remote || why == MissCold):
			all[i].Why = c.fates.of(hashes[i], &v.Generation, c.now())
		default:
			all[i].Why = why
		}
	}
	return all, hot, remote
}

package tiered

import "sync/atomic"

// Tier names where a block was found.
type Tier uint8

// Tiers, nearest first.
const (
	Hot Tier = iota
	Remote
	tiers
)

func (t Tier) String() string {
	if t == Hot {
		return "hot"
	}
	return "remote"
}

// Stats is a snapshot of what a cache has done since it was made. Counts only grow; sizes are of now. Blocks and tokens differ by
// the factor BlockTokens, and are both there because operators think in the one and users pay for the other.
type Stats struct {
	LookupBlocks int64            // blocks asked for
	HitBlocks    map[string]int64 // by tier
	MissBlocks   map[string]int64 // by reason
	BlockTokens  int

	HotBlocks   int
	HotBytes    int64
	HotMaxBytes int64
	Evicted     int64 // blocks that left the hot tier for space
	Invalidated int64 // blocks dropped because their generation ended

	FillingBytes  int64 // being fetched now
	SpillBytes    int64 // queued now
	SpillMaxBytes int64
	Spilled       int64            // blocks stored
	SpillDropped  map[string]int64 // blocks not stored, by reason
	BadValues     int64            // values deleted because they failed their checks
	// Tenants are those with the most bytes, at most MaxTenantStats, and last the rest together under the zero namespace, if any.
	Tenants []TenantStats
}

type counters struct {
	lookups     atomic.Int64
	hits        [tiers]atomic.Int64
	misses      [reasons]atomic.Int64
	evicted     atomic.Int64
	invalidated atomic.Int64
	filling     atomic.Int64
	spilled     atomic.Int64
	spillDrops  [drops]atomic.Int64
	badValues   atomic.Int64
}

// Stats returns a snapshot.
func (c *Cache) Stats() Stats {
	s := Stats{
		LookupBlocks: c.stats.lookups.Load(), HitBlocks: map[string]int64{}, MissBlocks: map[string]int64{}, SpillDropped: map[string]int64{},
		BlockTokens: c.format.Layout().BlockTokens, HotMaxBytes: c.opts.HotBytes, SpillMaxBytes: c.opts.SpillBytes,
		Evicted: c.stats.evicted.Load(), Invalidated: c.stats.invalidated.Load(), FillingBytes: c.stats.filling.Load(),
		Spilled: c.stats.spilled.Load(), BadValues: c.stats.badValues.Load(), SpillBytes: c.spill.bytes(),
	}
	s.HotBlocks, s.HotBytes = c.hot.size()
	s.Tenants = c.tenants.top(c.hot.shares())
	for t := range tiers {
		s.HitBlocks[t.String()] = c.stats.hits[t].Load()
	}
	for r := MissCold; r < reasons; r++ {
		s.MissBlocks[r.String()] = c.stats.misses[r].Load()
	}
	for d := range drops {
		s.SpillDropped[d.String()] = c.stats.spillDrops[d].Load()
	}
	return s
}

package tiered

import (
	"sync/atomic"

	"github.com/kvtier/kvtier/tiered/internal/spill"
)

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
	LookupBlocks int64            // blocks asked for, by requests that have ended
	HitBlocks    map[string]int64 // by tier, of requests that have ended
	MissBlocks   map[string]int64 // by reason
	BlockTokens  int

	HotBlocks   int
	HotBytes    int64
	HotMaxBytes int64
	SlabBytes   int64 // memory of blocks, hot or on their way, and of buffers kept for the next ones
	Evicted     int64 // blocks that left the hot tier for space
	Invalidated int64 // blocks dropped because their generation ended

	FillingBytes  int64 // being fetched now
	SpillBytes    int64 // queued now
	SpillMaxBytes int64
	Spilled       int64            // blocks stored
	SpillDropped  map[string]int64 // blocks not stored, by reason
	SpillSkipped  int64            // blocks not stored because the remote tier had them
	FillClaims    int64            // claims on blocks that were computed here
	FillWatched   int64            // claims of others that a request looked out for
	FillFound     int64            // those among them of which blocks came
	StoredBytes   int64            // bytes of values stored, as they are on the wire
	EncodedBytes  int64            // those among them that were encoded
	BadValues     int64            // values that failed their checks: they are deleted, unless another has taken their place
	// Tenants are those with the most bytes, at most MaxTenantStats, and last the rest together under the zero namespace, if any.
	Tenants []TenantStats
}

type counters struct {
	served      [counterShards]servedCounters
	misses      [Reasons]atomic.Int64
	evicted     atomic.Int64
	invalidated atomic.Int64
	filling     atomic.Int64
	spilled     atomic.Int64
	skipped     atomic.Int64
	spillDrops  [spill.Drops]atomic.Int64 // by spill.End, from spill.FirstDrop on
	badValues   atomic.Int64
}

// counterShards keeps requests that run at once from counting in the same cache line, which costs more than a look-up.
const counterShards = 16

type servedCounters struct {
	lookups atomic.Int64
	hits    [tiers]atomic.Int64
	_       [128 - 8*(1+tiers)]byte // two lines: processors fetch them in pairs
}

// count adds what a request found. Which shard it takes only has to differ between requests.
func (c *counters) count(shard uintptr, lookups int, hits [tiers]int) {
	s := &c.served[shard%counterShards]
	s.lookups.Add(int64(lookups))
	for t, n := range hits {
		if n > 0 {
			s.hits[t].Add(int64(n))
		}
	}
}

// Stats returns a snapshot.
func (c *Cache) Stats() Stats {
	s := Stats{
		HitBlocks: map[string]int64{}, MissBlocks: map[string]int64{}, SpillDropped: map[string]int64{},
		BlockTokens: c.format.Layout().BlockTokens, HotMaxBytes: c.opts.HotBytes, SpillMaxBytes: c.opts.SpillBytes,
		Evicted: c.stats.evicted.Load(), Invalidated: c.stats.invalidated.Load(), FillingBytes: c.stats.filling.Load(),
		Spilled: c.stats.spilled.Load(), SpillSkipped: c.stats.skipped.Load(), BadValues: c.stats.badValues.Load(), SpillBytes: c.spill.queue.Bytes(), SlabBytes: c.slabs.held(),
		FillClaims: c.leases.granted.Load(), FillWatched: c.leases.watched.Load(), FillFound: c.leases.filled.Load(),
		StoredBytes: c.link.storedBytes.Load(), EncodedBytes: c.link.encodedBytes.Load(),
	}
	s.HotBlocks, s.HotBytes = c.hot.size()
	s.Tenants = c.tenants.top(c.hot.shares())
	for i := range c.stats.served {
		s.LookupBlocks += c.stats.served[i].lookups.Load()
		for t := range tiers {
			s.HitBlocks[t.String()] += c.stats.served[i].hits[t].Load()
		}
	}
	for r := MissCold; r < Reasons; r++ {
		s.MissBlocks[r.String()] = c.stats.misses[r].Load()
	}
	for d := range spill.End(spill.Drops) {
		s.SpillDropped[(spill.FirstDrop + d).String()] = c.stats.spillDrops[d].Load()
	}
	return s
}

// Sizes are the bytes that a cache holds now.
type Sizes struct{ HotBytes, SpillBytes, FillingBytes int64 }

// Sizes is a cheap part of Stats.
func (c *Cache) Sizes() Sizes {
	_, hot := c.hot.size()
	return Sizes{HotBytes: hot, SpillBytes: c.spill.queue.Bytes(), FillingBytes: c.stats.filling.Load()}
}

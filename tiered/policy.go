package tiered

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	"github.com/kvtier/kvtier/block"
)

// WritePolicy says when a block that was computed here goes to the remote tier.
type WritePolicy uint8

const (
	// WriteThrough stores a block as soon as it has been computed: other workers can use it at once. For tiers that hold what is reused.
	WriteThrough WritePolicy = iota
	// WriteOnEvict stores a block, and what its chain needs of the blocks before it, when it leaves the hot tier for space: less traffic,
	// sharing of cold blocks only.
	WriteOnEvict
	// WriteOnSecondHit stores a block when this worker meets it for the second time: most prefixes never come back, and a tier too small for
	// all of them keeps more of those that do. For a tier that holds everything it is a loss: each worker computes a prefix once more.
	WriteOnSecondHit
	policies
)

var policyNames = [policies]string{"through", "evict", "second-hit"}

// ParseWritePolicy reads "through", "evict" or "second-hit".
func ParseWritePolicy(s string) (WritePolicy, error) {
	for p, name := range policyNames {
		if s == name {
			return WritePolicy(p), nil
		}
	}
	return 0, fmt.Errorf("tiered: unknown write policy %q, want one of %s", s, strings.Join(policyNames[:], ", "))
}

func (p WritePolicy) String() string {
	if p < policies {
		return policyNames[p]
	}
	return fmt.Sprintf("WritePolicy(%d)", uint8(p))
}

// seen remembers blocks that were computed once. It forgets the older half when it is full, in an hour of a busy worker or so, which only
// means that a block has to be met once more. 64 bits of a hash are enough to decide about a store.
type seen struct {
	mu          sync.Mutex
	young, aged map[uint64]struct{}
}

// seenBlocks is when the younger half is full: some 3 MiB for both.
const seenBlocks = 1 << 16

// again reports whether h was asked about before.
func (s *seen) again(h block.Hash) bool {
	key := binary.LittleEndian.Uint64(h[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	_, young := s.young[key]
	_, aged := s.aged[key]
	if young || aged {
		return true
	}
	if len(s.young) >= seenBlocks || s.young == nil {
		s.aged, s.young = s.young, make(map[uint64]struct{})
	}
	s.young[key] = struct{}{}
	return false
}

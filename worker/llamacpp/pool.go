package llamacpp

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"
)

// slot is one of the server's slots and what it is known to hold. Whoever has claimed it owns the fields.
type slot struct {
	id     int
	scope  string  // whose K/V it holds; "" for nobody's
	tokens []int32 // whose K/V it is known to hold, from position 0 on
	stored int     // how many of them need no export
	used   uint64  // when it was given back
	reign  uint64  // of the pool, when it was claimed: of one server process
}

// held is how many leading tokens of a prompt the slot has K/V of, if the prompt is in its scope. The last token is always computed.
func (s *slot) held(scope string, tokens []int32) int {
	if scope == "" || s.scope != scope {
		return 0
	}
	n := min(len(s.tokens), len(tokens)-1)
	for i := range n {
		if s.tokens[i] != tokens[i] {
			return i
		}
	}
	return max(n, 0)
}

// pool hands out the server's slots, in order of asking. It is safe for concurrent use.
type pool struct {
	size   int64
	places *semaphore.Weighted
	mu     sync.Mutex
	free   []*slot
	clock  uint64
	reign  uint64
}

func newPool(slots int) *pool {
	p := &pool{size: int64(slots), places: semaphore.NewWeighted(int64(slots))}
	for i := range slots {
		p.free = append(p.free, &slot{id: i})
	}
	return p
}

// claim waits for a free slot, then picks one for the prompt: one that holds more than half of the prompt, or of whose own content more than
// half is of use; else the one that was not used for longest, so that a short common beginning does not displace a long prefix.
func (p *pool) claim(ctx context.Context, tokens []int32, scope func() string) (*slot, string, error) {
	if err := p.places.Acquire(ctx, 1); err != nil {
		return nil, "", err
	}
	name := ""
	if scope != nil {
		name = scope()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	best, most, oldest := -1, 0, 0
	for i, s := range p.free {
		if s.used < p.free[oldest].used {
			oldest = i
		}
		if held := s.held(name, tokens); held > most && (2*held > len(tokens) || 2*held > len(s.tokens)) {
			best, most = i, held
		}
	}
	if best < 0 {
		best = oldest
	}
	s := p.free[best]
	p.free = slices.Delete(p.free, best, best+1)
	s.reign = p.reign
	return s, name, nil
}

// release gives a slot back.
func (p *pool) release(s *slot) {
	p.mu.Lock()
	if s.reign != p.reign {
		s.empty()
	}
	p.clock++
	s.used = p.clock
	p.free = append(p.free, s)
	p.mu.Unlock()
	p.places.Release(1)
}

// forget is called when slots do not hold what they held, because the server is another process. The caller has claimed mine.
func (p *pool) forget(mine *slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reign++
	for _, s := range p.free {
		s.empty()
	}
	mine.empty()
	mine.reign = p.reign
}

func (s *slot) empty() { s.scope, s.tokens, s.stored = "", nil, 0 }

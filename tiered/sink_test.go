package tiered_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/tiered"
)

// sequence is a Sink that knows what every position has to hold, and fails the test when something else counts.
type sequence struct {
	t      testing.TB
	layout block.Layout
	have   int             // tokens that count
	placed map[[2]int]bool // by block and part: what was placed and not computed over
	ran    [][2]int        // blocks that were computed: from, to
	check  func(i, part int, kv []byte)
	before func(call string, i int) // called before each call takes effect
	delay  func(tokens int)         // how long computing takes
}

func newSequence(t testing.TB, l block.Layout, held int, check func(i, part int, kv []byte)) *sequence {
	return &sequence{t: t, layout: l, have: held * l.BlockTokens, placed: map[[2]int]bool{}, check: check}
}

// stamped checks what stamp wrote.
func stamped(t testing.TB, g tiered.Generation, hashes []block.Hash) func(i, part int, kv []byte) {
	return func(i, part int, kv []byte) { checkStamp(t, kv, g, hashes[i], part) }
}

func (s *sequence) tell(call string, i int) {
	if s.before != nil {
		s.before(call, i)
	}
}

func (s *sequence) Len() int { return s.have }

func (s *sequence) Place(pos int, p block.Part, kv []byte) error {
	i := pos / s.layout.BlockTokens
	s.tell("place", i)
	if pos%s.layout.BlockTokens != 0 || pos < s.have || len(kv) != s.layout.PartBytes(p) {
		s.t.Errorf("part %d of %d bytes placed at %d, where %d tokens count", p.Index, len(kv), pos, s.have)
	}
	s.check(i, p.Index, kv)
	s.placed[[2]int{i, p.Index}] = true
	return nil
}

func (s *sequence) Skip(n int) error {
	s.tell("skip", s.have/s.layout.BlockTokens)
	for end := s.have + n; s.have < end; s.have += s.layout.BlockTokens {
		for p := range s.layout.PartCount() {
			if !s.placed[[2]int{s.have / s.layout.BlockTokens, p}] {
				return fmt.Errorf("part %d at %d counts without having been placed", p, s.have)
			}
		}
	}
	return nil
}

func (s *sequence) Compute(ctx context.Context, to int) error {
	from := s.have / s.layout.BlockTokens
	s.tell("compute", from)
	if s.delay != nil {
		s.delay(to - s.have)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := from; i < to/s.layout.BlockTokens; i++ {
		for p := range s.layout.PartCount() {
			if s.placed[[2]int{i, p}] {
				s.t.Errorf("block %d was placed and is computed", i)
			}
		}
	}
	s.have, s.ran = to, append(s.ran, [2]int{from, to / s.layout.BlockTokens})
	return nil
}

// bring brings a chain that put has made into an empty sequence, front to back, as an engine does that computes in one piece.
func bring(t testing.TB, c *tiered.Cache, v tiered.View, ns block.Digest, hashes []block.Hash, l block.Layout) tiered.Outcome {
	t.Helper()
	s := newSequence(t, l, 0, stamped(t, v.Generation, hashes))
	out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: gate.Always, Whole: true}, s)
	if err != nil {
		t.Fatal(err)
	}
	consistent(t, out, s, len(hashes))
	return out
}

// consistent holds an outcome to what the sequence saw: every token has one source or one reason.
func consistent(t testing.TB, out tiered.Outcome, s *sequence, blocks int) {
	t.Helper()
	missed := 0
	for _, n := range out.Misses {
		missed += n
	}
	if out.Hot+out.Remote+out.Computed != s.have || out.Hot+out.Remote+missed != blocks*s.layout.BlockTokens || (missed == 0) != (out.Miss == tiered.MissNone) {
		t.Errorf("%d tokens count, of %d asked for: %+v", s.have, blocks*s.layout.BlockTokens, out)
	}
}

// Bring is for a sink as Load is for those who have none: the same blocks, the same reasons, whatever the tiers are like.
func TestLoadPinsWhatBringBrings(t *testing.T) {
	v := shared(generation(1, 1))
	ns, hashes := chainOf(v.Generation, 7, 5)
	for name, want := range map[string]struct {
		hot, remote int
		miss        tiered.Reason
		change      func(c *tiered.Cache, l *tiered.Lookup)
	}{
		"from both":        {2, 2, tiered.MissCold, func(c *tiered.Cache, _ *tiered.Lookup) { put(t, c, v, 7, 2) }},
		"hot only":         {2, 0, tiered.MissGate, func(c *tiered.Cache, l *tiered.Lookup) { put(t, c, v, 7, 2); l.Mode = gate.Never }},
		"behind held ones": {0, 3, tiered.MissCold, func(_ *tiered.Cache, l *tiered.Lookup) { l.Held = 1 }},
		"all held":         {0, 0, tiered.MissNone, func(_ *tiered.Cache, l *tiered.Lookup) { l.Held = 5 }},
		"all there":        {0, 4, tiered.MissNone, func(_ *tiered.Cache, l *tiered.Lookup) { l.Chain = l.Chain[:4] }},
		"no lease":         {0, 0, tiered.MissUnshared, func(c *tiered.Cache, _ *tiered.Lookup) { hot := v; hot.Access = tiered.AccessHot; c.SetView(hot) }},
		"another epoch":    {0, 0, tiered.MissEpoch, func(c *tiered.Cache, _ *tiered.Lookup) { c.SetView(shared(generation(1, 2))) }},
	} {
		t.Run(name, func(t *testing.T) {
			caches := [2]*tiered.Cache{}
			for i := range caches {
				caches[i] = newCache(t, filled(t, v, 7, 4), nil)
				caches[i].SetView(v)
			}
			l := tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: gate.Always, Whole: true}
			want.change(caches[0], &l)
			s := newSequence(t, testLayout, l.Held, stamped(t, v.Generation, hashes))
			out, err := caches[0].Bring(t.Context(), l, s)
			if err != nil || out.Hot != want.hot*testLayout.BlockTokens || out.Remote != want.remote*testLayout.BlockTokens || out.Miss != want.miss {
				t.Errorf("brought %+v, %v; want %d hot, %d remote, %v", out, err, want.hot, want.remote, want.miss)
			}
			l = tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: gate.Always}
			want.change(caches[1], &l)
			p := caches[1].Load(t.Context(), l)
			if p.Found(tiered.Hot) != want.hot || p.Found(tiered.Remote) != want.remote || p.Miss() != want.miss || p.Blocks() != want.hot+want.remote {
				t.Errorf("pinned %d hot, %d remote, %v", p.Found(tiered.Hot), p.Found(tiered.Remote), p.Miss())
			}
			for i := range p.Blocks() {
				for part := range testLayout.PartCount() {
					checkStamp(t, p.Part(i, part), v.Generation, hashes[l.Held+i], part)
				}
			}
			if got := p.Release(); got != (p.Found(tiered.Hot)+p.Found(tiered.Remote) > 0) {
				t.Errorf("current: %v", got)
			}
			if a, b := caches[0].Stats(), caches[1].Stats(); fmt.Sprint(a.MissBlocks, a.HitBlocks, a.LookupBlocks) != fmt.Sprint(b.MissBlocks, b.HitBlocks, b.LookupBlocks) {
				t.Errorf("counted %v %v by Bring, %v %v by Load", a.HitBlocks, a.MissBlocks, b.HitBlocks, b.MissBlocks)
			}
		})
	}
}

// A block that is gone when the request comes for it costs that block: those before and behind it are used all the same, from either end.
func TestAHoleCostsItsBlockOnly(t *testing.T) {
	v := shared(generation(1, 1))
	ns, hashes := chainOf(v.Generation, 7, 6)
	for _, mode := range []gate.Mode{gate.Always, gate.Auto} { // with nothing measured, auto fetches everything, from the back
		for _, holes := range [][]int{{4}, {0}, {5}, {1, 2}, {0, 2, 4}, {0, 1, 2, 3, 4, 5}} {
			t.Run(fmt.Sprint(mode, holes), func(t *testing.T) {
				mem := filled(t, v, 7, 6)
				remote := &losing{Store: mem, t: t}
				for _, i := range holes {
					remote.keys = append(remote.keys, block.Key(v.Identity.Variant(), v.Epoch, hashes[i], 1))
				}
				c := newCache(t, remote, nil)
				c.SetView(v)
				s := newSequence(t, testLayout, 0, stamped(t, v.Generation, hashes))
				out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: mode}, s)
				if err != nil {
					t.Fatal(err)
				}
				consistent(t, out, s, len(hashes))
				if n := (len(hashes) - len(holes)) * testLayout.BlockTokens; out.Remote != n || out.Misses[tiered.MissEvicted] != len(holes)*testLayout.BlockTokens {
					t.Errorf("%d tokens from the remote tier, want %d; %+v", out.Remote, n, out)
				}
				for _, run := range s.ran {
					for i := run[0]; i < run[1]; i++ {
						if !slices.Contains(holes, i) {
							t.Errorf("block %d was computed although it was there", i)
						}
					}
				}
			})
		}
	}
}

// What is checked last is used last: between the last byte placed and the moment when it counts, the generation may end, the lease, the tenant.
func TestNothingCountsAfterTheLastComparison(t *testing.T) {
	v := shared(generation(1, 1))
	ns, hashes := chainOf(v.Generation, 7, 4)
	purged := v
	purged.Cuts = map[block.Digest]block.Cut{ns: {1}}
	none := v
	none.Access = tiered.AccessNone
	for name, next := range map[string]struct {
		view tiered.View
		why  tiered.Reason
	}{"another epoch": {shared(generation(1, 2)), tiered.MissEpoch}, "the tenant": {purged, tiered.MissTenant}, "no access": {none, tiered.MissUnshared}} {
		for _, where := range []string{"hot", "remote", "both ends"} {
			t.Run(name+", "+where, func(t *testing.T) {
				c := newCache(t, filled(t, v, 7, 4), nil)
				c.SetView(v)
				mode := gate.Always
				if where == "hot" {
					put(t, c, v, 7, 4)
				} else if where == "both ends" {
					mode = gate.Auto
				}
				s := newSequence(t, testLayout, 0, stamped(t, v.Generation, hashes))
				n := 0
				s.before = func(call string, _ int) {
					if call == "place" {
						if n++; n == 4*testLayout.PartCount() { // the last byte is on its way
							c.SetView(next.view)
						}
					}
				}
				out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes, Mode: mode}, s)
				if err != nil || out.Hot+out.Remote != 0 || s.have != 0 || out.Miss != next.why || out.Misses[next.why] != 4*testLayout.BlockTokens {
					t.Errorf("%+v, %v, %d tokens count; want none, and %v", out, err, s.have, next.why)
				}
			})
		}
	}
}

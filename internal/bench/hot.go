package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered"
)

// HotResult is what a hit in the hot tier costs, pinning and releasing the block included. NsPerHit and AllocsPerHit are those of one
// goroutine that walks prompts of 2 MiB blocks; Rows has the other cases. JSON names are stable.
type HotResult struct {
	NsPerHit     float64  `json:"ns_per_hit"`
	AllocsPerHit float64  `json:"allocs_per_hit"`
	ZeroCopy     bool     `json:"zero_copy"` // every hit of a block saw the same memory
	Rows         []HotRow `json:"rows"`
}

// HotRow is one case. NsPerHit is wall time divided by the hits of all goroutines together.
type HotRow struct {
	BlockBytes   int     `json:"block_bytes"`
	WalkBlocks   int     `json:"walk_blocks"` // blocks of the prompt that one lookup finds
	Goroutines   int     `json:"goroutines"`
	NsPerHit     float64 `json:"ns_per_hit"`
	NsPerHitMin  float64 `json:"ns_per_hit_min"`
	NsPerHitMax  float64 `json:"ns_per_hit_max"`
	AllocsPerHit float64 `json:"allocs_per_hit"`
	BytesPerHit  float64 `json:"alloc_bytes_per_hit"`
}

// hotBlocks is how many blocks are hot: 64 MiB of the larger ones.
const hotBlocks = 32

// HotSlices is how often Hot calls step, for a d of at least a second.
func HotSlices(d time.Duration) int { n := len(hotCases()); return n * PlanFor(d, n).Rounds }

func hotCases() (rows []HotRow) {
	for _, size := range []int{2 << 20, 64 << 10} {
		for _, walk := range []int{hotBlocks, 1} {
			for _, goroutines := range []int{1, 2} {
				rows = append(rows, HotRow{BlockBytes: size, WalkBlocks: walk, Goroutines: goroutines})
			}
		}
	}
	return rows
}

// Hot measures hits of tiered.Cache for about d.
func Hot(ctx context.Context, d time.Duration, step func()) (HotResult, error) {
	tiers := map[int]*HotTier{}
	rows := hotCases()
	methods := make([]Method, len(rows))
	for i, r := range rows {
		t := tiers[r.BlockBytes]
		if t == nil {
			var err error
			if t, err = NewHotTier(r.BlockBytes, hotBlocks); err != nil {
				return HotResult{}, err
			}
			defer t.Close()
			tiers[r.BlockBytes] = t
		}
		methods[i] = Method{Name: fmt.Sprintf("hot %d", i), Do: func(ctx context.Context) (Work, error) {
			return t.Hits(ctx, r.Goroutines, r.WalkBlocks, 4096)
		}}
	}
	series, err := Rounds(ctx, PlanFor(d, len(methods)), methods, step)
	if err != nil {
		return HotResult{}, err
	}
	for i, s := range series {
		ns := s.Of(Sample.NsPerOp)
		rows[i].NsPerHit, rows[i].NsPerHitMin, rows[i].NsPerHitMax = ns.Median, ns.Min, ns.Max
		rows[i].AllocsPerHit = s.Of(Sample.AllocsPerOp).Median
		rows[i].BytesPerHit = s.Of(Sample.AllocBytesPerOp).Median
	}
	return HotResult{NsPerHit: rows[0].NsPerHit, AllocsPerHit: rows[0].AllocsPerHit, ZeroCopy: tiers[2<<20].zeroCopy(ctx), Rows: rows}, nil
}

// HotTier is a cache without a remote tier in which one prompt is hot.
type HotTier struct {
	cache  *tiered.Cache
	view   tiered.View
	ns     block.Digest
	hashes []block.Hash
	tokens int // of a block
}

// NewHotTier makes a tier with n hot blocks of blockBytes.
func NewHotTier(blockBytes, n int) (*HotTier, error) {
	l, err := LayoutOf(blockBytes)
	if err != nil {
		return nil, err
	}
	cache, err := tiered.New(tiered.Options{Layout: l, HotBytes: int64(n+1) * int64(blockBytes+64<<10)})
	if err != nil {
		return nil, err
	}
	t := &HotTier{cache: cache, tokens: l.BlockTokens, view: tiered.View{Access: tiered.AccessHot, Generation: tiered.Generation{
		Identity: block.Identity{Weights: block.Digest{1}, Layout: l.Digest()}, Epoch: 1}}}
	cache.SetView(t.view)
	chain := block.NewChain(nil, t.view.Identity, "", l.BlockTokens)
	t.ns, t.hashes = chain.Namespace(), chain.AppendHashes(nil, make([]int32, n*l.BlockTokens))
	for i := range t.hashes {
		err := cache.Put(t.view, t.ns, t.hashes[:i+1], func(p block.Part, dst []byte) error { dst[0] = byte(i); return nil })
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Hits looks up, pins and releases hits blocks on each of some goroutines, walk blocks in one lookup.
func (t *HotTier) Hits(ctx context.Context, goroutines, walk, hits int) (Work, error) {
	one := func(from int) error {
		var f finding // used again: hits then allocate nothing
		for done := 0; done < hits; done += walk {
			at := 0
			if walk < len(t.hashes) {
				at = (from + done) % (len(t.hashes) - walk + 1)
			}
			if n := t.walk(ctx, &f, at, walk); n != walk {
				return fmt.Errorf("bench: %d of %d blocks are hot", n, walk)
			}
		}
		return nil
	}
	rounded := int64((hits + walk - 1) / walk * walk)
	if goroutines == 1 {
		return Work{Ops: rounded}, one(0)
	}
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() { errs[g] = one(g * 7) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return Work{}, err
		}
	}
	return Work{Ops: rounded * int64(goroutines)}, nil
}

// finding is a sink that looks where blocks lie and copies nothing.
type finding struct {
	have, found int
	at          []*byte // with look
	look        bool
}

// Len implements tiered.Sink.
func (f *finding) Len() int { return f.have }

// Place implements tiered.Sink.
func (f *finding) Place(_ int, p block.Part, kv []byte) error {
	if p.Index == 0 && len(kv) > 0 {
		f.found++
		if f.look {
			f.at = append(f.at, unsafe.SliceData(kv))
		}
	}
	return nil
}

// Skip implements tiered.Sink.
func (f *finding) Skip(n int) error {
	f.have += n
	return nil
}

// Compute implements tiered.Sink.
func (f *finding) Compute(_ context.Context, to int) error {
	f.have = to
	return nil
}

// walk brings n hot blocks behind the first.
func (t *HotTier) walk(ctx context.Context, f *finding, first, n int) (found int) {
	f.have, f.found = first*t.tokens, 0
	_, err := t.cache.Bring(ctx, tiered.Lookup{View: t.view, Namespace: t.ns, Chain: t.hashes[:first+n], Held: first}, f)
	if err != nil {
		return 0
	}
	return f.found
}

// zeroCopy compares where two hits of every block find its payload.
func (t *HotTier) zeroCopy(ctx context.Context) bool {
	var a, b finding
	a.look, b.look = true, true
	n := t.walk(ctx, &a, 0, len(t.hashes))
	return n == len(t.hashes) && t.walk(ctx, &b, 0, n) == n && slices.Equal(a.at, b.at)
}

// Close releases the tier.
func (t *HotTier) Close() { t.cache.Close(context.Background()) }

package tiered_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testLayout has two parts per block, so that a block can be there in part.
var testLayout = block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 2, KVHeads: 8, HeadDim: 2032, BlockTokens: 32,
	TPSize: 1, RopeBase: 1, RopeScale: 1, Numerics: "test/1"}

func generation(weights byte, epoch block.Epoch) tiered.Generation {
	return tiered.Generation{Identity: block.Identity{Weights: block.Digest{weights}, Layout: testLayout.Digest()}, Epoch: epoch}
}

func shared(g tiered.Generation) tiered.View {
	return tiered.View{Generation: g, Access: tiered.AccessShared}
}

// chainOf is a chain of n blocks of a prompt named by seed.
func chainOf(g tiered.Generation, seed int32, n int) (ns block.Digest, hashes []block.Hash) {
	c := block.NewChain(nil, g.Identity, "", testLayout.BlockTokens)
	tokens := make([]int32, n*testLayout.BlockTokens)
	for i := range tokens {
		tokens[i] = seed
	}
	return c.Namespace(), c.AppendHashes(nil, tokens)
}

// stamp is the oracle: a payload that says what computed it. Whoever is served anything else was served wrong or stale K/V.
func stamp(dst []byte, g tiered.Generation, h block.Hash, part int) {
	copy(dst, g.Identity.Weights[:])
	copy(dst[32:], h[:])
	binary.LittleEndian.PutUint64(dst[64:], uint64(part))
}

func checkStamp(t testing.TB, got []byte, g tiered.Generation, h block.Hash, part int) {
	t.Helper()
	var want [72]byte
	stamp(want[:], g, h, part)
	if !bytes.Equal(got[:72], want[:]) {
		t.Fatalf("block %v part %d: payload of something else was served", h, part)
	}
}

func newCache(t testing.TB, remote store.Store, change func(*tiered.Options)) *tiered.Cache {
	t.Helper()
	// Generous where a test is not about time: the machine that runs it may be busy.
	o := tiered.Options{Layout: testLayout, Remote: remote, HotBytes: 256 << 20, ProbeTimeout: 10 * time.Second, FetchTimeout: 10 * time.Second}
	if change != nil {
		change(&o)
	}
	c, err := tiered.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // drop what is queued: only tests of draining drain
		c.Close(ctx)
	})
	return c
}

func put(t testing.TB, c *tiered.Cache, v tiered.View, seed int32, n int) {
	t.Helper()
	ns, hashes := chainOf(v.Generation, seed, n)
	for i, h := range hashes {
		if err := c.Put(v, ns, hashes[:i+1], func(p block.Part, dst []byte) error {
			stamp(dst, v.Generation, h, p.Index)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// fetch brings the chain, checks every payload, and returns how many blocks came from which tier.
func fetch(t testing.TB, c *tiered.Cache, v tiered.View, seed int32, n int) (hot, remote int, why tiered.Reason) {
	t.Helper()
	ns, hashes := chainOf(v.Generation, seed, n)
	out := bring(t, c, v, ns, hashes, testLayout)
	return out.Hot / testLayout.BlockTokens, out.Remote / testLayout.BlockTokens, out.Miss
}

func flush(t testing.TB, c *tiered.Cache) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, c *tiered.Cache, v tiered.View, seed int32, n, hot, remote int, why tiered.Reason) {
	t.Helper()
	h, r, w := fetch(t, c, v, seed, n)
	if h != hot || r != remote || w != why {
		t.Errorf("fetch of %d blocks: %d hot, %d remote, miss %v; want %d, %d, %v", n, h, r, w, hot, remote, why)
	}
}

func TestBlocksTravelFromOneWorkerToAnother(t *testing.T) {
	if n := testLayout.PartCount(); n != 2 {
		t.Fatalf("the test wants blocks of 2 parts, they have %d", n)
	}
	remote := memstore.New(memstore.Options{})
	a, b := newCache(t, remote, nil), newCache(t, remote, nil)
	v := shared(generation(1, 1))
	a.SetView(v)
	b.SetView(v)
	expect(t, a, v, 7, 3, 0, 0, tiered.MissCold)
	put(t, a, v, 7, 3)
	expect(t, a, v, 7, 3, 3, 0, tiered.MissNone)
	expect(t, a, v, 7, 5, 3, 0, tiered.MissCold)
	flush(t, a)
	expect(t, b, v, 7, 5, 0, 3, tiered.MissCold)
	expect(t, b, v, 7, 3, 3, 0, tiered.MissNone)
	if s := b.Stats(); s.FillingBytes != 0 || s.HitBlocks["remote"] != 3 || s.HitBlocks["hot"] != 3 || s.MissBlocks["cold"] != 2 {
		t.Errorf("stats: %+v", s)
	}
}

func TestAGapEndsTheMatch(t *testing.T) {
	v := shared(generation(1, 1))
	_, hashes := chainOf(v.Generation, 7, 4)
	for part := range 2 {
		remote := memstore.New(memstore.Options{})
		a, b := newCache(t, remote, nil), newCache(t, remote, nil)
		a.SetView(v)
		b.SetView(v)
		put(t, a, v, 7, 4)
		flush(t, a)
		if n, err := remote.Delete(t.Context(), []string{block.Key(v.Identity.Variant(), v.Epoch, hashes[2], part)}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		expect(t, b, v, 7, 4, 0, 2, []tiered.Reason{tiered.MissCold, tiered.MissIncomplete}[part])
	}
}

// Never wrong: a value that is damaged, or that belongs elsewhere, is a miss and is removed, so that it heals.
func TestBadValuesAreMissesAndAreRemoved(t *testing.T) {
	v := shared(generation(1, 1))
	_, hashes := chainOf(v.Generation, 7, 3)
	key := func(i int) string { return block.Key(v.Identity.Variant(), v.Epoch, hashes[i], 0) }
	read := func(remote store.Store, i int) []byte {
		buf := make([]byte, store.MaxValueBytes+store.Spare)
		for n, err := range remote.Get(t.Context(), []string{key(i)}, [][]byte{buf}) {
			if err != nil {
				t.Fatal(err)
			}
			buf = buf[:n]
		}
		return buf
	}
	for name, c := range map[string]struct {
		spoil func(value, other []byte) []byte
		want  tiered.Reason
	}{
		"flipped bit":          {func(b, _ []byte) []byte { b[len(b)/2] ^= 4; return b }, tiered.MissCorrupt},
		"truncated":            {func(b, _ []byte) []byte { return b[:len(b)-1] }, tiered.MissCorrupt},
		"empty":                {func([]byte, []byte) []byte { return nil }, tiered.MissCorrupt},
		"longer than allowed":  {func(b, _ []byte) []byte { return append(b, make([]byte, 4096)...) }, tiered.MissOversize},
		"value of a neighbour": {func(_, o []byte) []byte { return o }, tiered.MissVariant},
	} {
		t.Run(name, func(t *testing.T) {
			remote := memstore.New(memstore.Options{})
			a, b := newCache(t, remote, nil), newCache(t, remote, nil)
			a.SetView(v)
			b.SetView(v)
			put(t, a, v, 7, 3)
			flush(t, a)
			bad := c.spoil(read(remote, 1), read(remote, 2))
			if err := remote.Put(t.Context(), []store.Item{{Key: key(1), Value: bad}}, time.Hour); err != nil {
				t.Fatal(err)
			}
			expect(t, b, v, 7, 3, 0, 1, c.want)
			put(t, b, v, 7, 3) // the request recomputes, and what it computed is stored again
			flush(t, b)
			if n, err := remote.Lead(t.Context(), []string{key(0), key(1), key(2)}); n != 3 || err != nil {
				t.Errorf("after recomputing %d of 3 blocks are there, %v", n, err)
			}
			if s := b.Stats(); s.BadValues != 1 {
				t.Errorf("%d bad values counted, want 1", s.BadValues)
			}
		})
	}
}

// gated lets a test hold a store's calls and count them.
type gated struct {
	store.Store
	gets, leads atomic.Int64
	enter       chan struct{} // receives one value per Get or Put that has begun; nil: do not say
	pass        chan struct{} // closed or fed to let them go on; nil: at once
	fail        atomic.Pointer[error]
}

func (g *gated) hold(ctx context.Context) error {
	if g.enter != nil {
		g.enter <- struct{}{}
	}
	if g.pass != nil {
		select {
		case <-g.pass:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := g.fail.Load(); err != nil {
		return *err
	}
	return nil
}

func (g *gated) Lead(ctx context.Context, keys []string) (int, error) {
	g.leads.Add(1)
	if err := g.fail.Load(); err != nil {
		return 0, *err
	}
	return g.Store.Lead(ctx, keys)
}

func (g *gated) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	g.gets.Add(1)
	return func(yield func(int, error) bool) {
		if err := g.hold(ctx); err != nil {
			for range keys {
				if !yield(0, err) {
					return
				}
			}
			return
		}
		g.Store.Get(ctx, keys, bufs)(yield)
	}
}

func (g *gated) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	if err := g.hold(ctx); err != nil {
		return err
	}
	return g.Store.Put(ctx, items, ttl)
}

// filled returns a store that has the first n blocks of chain seed.
func filled(t testing.TB, v tiered.View, seed int32, n int) *memstore.Store {
	remote := memstore.New(memstore.Options{})
	a := newCache(t, remote, nil)
	a.SetView(v)
	put(t, a, v, seed, n)
	flush(t, a)
	return remote
}

func TestConcurrentMissesShareOneFill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := shared(generation(1, 1))
		remote := &gated{Store: filled(t, v, 7, 4), pass: make(chan struct{})}
		c := newCache(t, remote, nil)
		c.SetView(v)
		var wg sync.WaitGroup
		var blocks atomic.Int64
		for range 8 {
			wg.Go(func() {
				_, r, _ := fetch(t, c, v, 7, 4)
				blocks.Add(int64(r))
			})
		}
		synctest.Wait() // all of them wait for the one that reads
		close(remote.pass)
		wg.Wait()
		if got := remote.gets.Load(); got != 1 {
			t.Errorf("%d reads for 8 requests of one prefix, want 1", got)
		}
		if got := blocks.Load(); got != 32 {
			t.Errorf("%d blocks served, want 32", got)
		}
		if s := c.Stats(); s.FillingBytes != 0 || s.HotBlocks != 4 {
			t.Errorf("afterwards %d bytes filling and %d blocks hot, want 0 and 4", s.FillingBytes, s.HotBlocks)
		}
	})
}

func TestASlowStoreCostsTheDeadlineAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := shared(generation(1, 1))
		remote := &gated{Store: filled(t, v, 7, 2), pass: make(chan struct{})}
		c := newCache(t, remote, func(o *tiered.Options) { o.FetchTimeout = 300 * time.Millisecond })
		c.SetView(v)
		start := time.Now()
		expect(t, c, v, 7, 2, 0, 0, tiered.MissDeadline)
		if d := time.Since(start); d > 300*time.Millisecond {
			t.Errorf("the request waited %v, want at most 300ms", d)
		}
		synctest.Wait()
		if s := c.Stats(); s.FillingBytes != 0 {
			t.Errorf("%d bytes still filling", s.FillingBytes)
		}
	})
}

func TestFaultsAreMisses(t *testing.T) {
	v := shared(generation(1, 1))
	remote := &gated{Store: filled(t, v, 7, 2)}
	c := newCache(t, remote, nil)
	c.SetView(v)
	for err, want := range map[error]tiered.Reason{
		errors.New("reset by peer"): tiered.MissFault, store.ErrUnavailable: tiered.MissBreaker, context.DeadlineExceeded: tiered.MissDeadline,
	} {
		remote.fail.Store(&err)
		expect(t, c, v, 7, 2, 0, 0, want)
	}
	remote.fail.Store(nil)
	expect(t, c, v, 7, 2, 0, 2, tiered.MissNone)
}

// Never stale: what belongs to the generation before is gone at once, and what was under way for it arrives nowhere.
func TestAChangeOfGenerationDropsEverything(t *testing.T) {
	old, next := shared(generation(1, 1)), shared(generation(2, 1))
	t.Run("hot blocks", func(t *testing.T) {
		c := newCache(t, nil, nil)
		c.SetView(old)
		put(t, c, old, 7, 2)
		c.SetView(next)
		expect(t, c, next, 7, 2, 0, 0, tiered.MissUnshared)
		expect(t, c, old, 7, 2, 0, 0, tiered.MissEpoch)
		put(t, c, old, 7, 2) // computed before the change, handed in after it
		c.SetView(old)
		expect(t, c, old, 7, 2, 0, 0, tiered.MissUnshared)
	})
	t.Run("purge of the same weights", func(t *testing.T) {
		remote := filled(t, old, 7, 2)
		c := newCache(t, remote, nil)
		c.SetView(shared(generation(1, 2)))
		expect(t, c, shared(generation(1, 2)), 7, 2, 0, 0, tiered.MissCold)
	})
	t.Run("same epoch number of another activation", func(t *testing.T) {
		c := newCache(t, nil, nil)
		c.SetView(old)
		put(t, c, old, 7, 2)
		again := old
		again.Act[0] = 1
		c.SetView(again)
		expect(t, c, again, 7, 2, 0, 0, tiered.MissUnshared)
	})
	t.Run("fill under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			remote := &gated{Store: filled(t, old, 7, 2), enter: make(chan struct{}, 9), pass: make(chan struct{})}
			c := newCache(t, remote, nil)
			c.SetView(old)
			done := make(chan struct{})
			go func() {
				defer close(done)
				expect(t, c, old, 7, 2, 0, 0, tiered.MissEpoch)
			}()
			<-remote.enter
			c.SetView(next)
			close(remote.pass)
			<-done
			synctest.Wait()
			c.SetView(old) // nothing that arrived in between may show up
			remote.fail.Store(new(errors.New("down")))
			expect(t, c, old, 7, 2, 0, 0, tiered.MissFault)
		})
	})
	t.Run("pinned blocks", func(t *testing.T) {
		c := newCache(t, nil, nil)
		c.SetView(old)
		put(t, c, old, 7, 2)
		ns, hashes := chainOf(old.Generation, 7, 2)
		p := c.Load(t.Context(), tiered.Lookup{View: old, Namespace: ns, Chain: hashes})
		if p.Blocks() != 2 {
			t.Fatalf("%d blocks pinned", p.Blocks())
		}
		c.SetView(next)
		checkStamp(t, p.Part(0, 0), old.Generation, hashes[0], 0) // its memory is not reused under the reader
		for range 2 {
			if p.Release() {
				t.Error("what was copied of old blocks may be used")
			}
		}
	})
	t.Run("queued spills", func(t *testing.T) {
		mem := memstore.New(memstore.Options{})
		remote := &gated{Store: mem, enter: make(chan struct{}, 99), pass: make(chan struct{})}
		c := newCache(t, remote, nil)
		c.SetView(old)
		put(t, c, old, 7, 1)
		<-remote.enter // the first is being written, the others wait behind it
		put(t, c, old, 8, 3)
		c.SetView(next)
		close(remote.pass)
		flush(t, c)
		n, err := mem.CountPrefix(t.Context(), block.VariantPrefix(old.Identity.Variant()))
		if n != 2 || err != nil {
			t.Errorf("%d values of the old variant stored, %v; want the 2 of the write that had begun", n, err)
		}
		if s := c.Stats(); s.SpillDropped["stale"] != 3 {
			t.Errorf("%d spills dropped as stale, want 3", s.SpillDropped["stale"])
		}
	})
}

func TestAccessIsALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := shared(generation(1, 1))
		v.Until, v.Then = time.Now().Add(time.Second), tiered.AccessHot
		remote := &gated{Store: filled(t, v, 7, 4)}
		c := newCache(t, remote, nil)
		c.SetView(v)
		expect(t, c, v, 7, 2, 0, 2, tiered.MissNone)
		time.Sleep(2 * time.Second)
		asked := remote.leads.Load()
		expect(t, c, c.View(), 7, 4, 2, 0, tiered.MissUnshared)
		if got := remote.leads.Load(); got != asked {
			t.Error("the store was asked without a lease")
		}
		v.Until, v.Then = time.Now().Add(time.Second), tiered.AccessNone
		c.SetView(v)
		expect(t, c, v, 7, 4, 2, 2, tiered.MissNone)
		time.Sleep(2 * time.Second)
		expect(t, c, v, 7, 4, 0, 0, tiered.MissUnshared)
	})
}

func TestHotTierIsBoundedInBytes(t *testing.T) {
	const limit = 39 << 20 // a block has about 4 MiB
	c := newCache(t, nil, func(o *tiered.Options) { o.HotBytes = limit })
	v := shared(generation(1, 1))
	c.SetView(v)
	put(t, c, v, 1, 4)
	for seed := range int32(20) {
		put(t, c, v, 100+seed, 1)
		expect(t, c, v, 1, 4, 4, 0, tiered.MissNone) // in use: stays
		if s := c.Stats(); s.HotBytes > limit {
			t.Fatalf("%d bytes hot, bound is %d", s.HotBytes, limit)
		}
	}
	if s := c.Stats(); s.Evicted < 10 || s.HotBlocks < 8 {
		t.Errorf("stats: %+v", s)
	}
	// Leaves leave before their root: whatever is left of a chain is usable.
	for seed := range int32(6) {
		put(t, c, v, 200+seed, 1)
	}
	hot, _, _ := fetch(t, c, v, 1, 4)
	if hot == 0 || hot == 4 {
		t.Errorf("%d of 4 blocks of the older chain are left at its front, want some", hot)
	}
}

func TestWhatLeavesIsSpilledOnEvict(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	c := newCache(t, remote, func(o *tiered.Options) { o.HotBytes, o.WritePolicy = 10<<20, tiered.WriteOnEvict })
	v := shared(generation(1, 1))
	c.SetView(v)
	put(t, c, v, 1, 1)
	put(t, c, v, 2, 1)
	flush(t, c)
	if n, _ := remote.CountPrefix(t.Context(), block.KeyPrefix); n != 0 {
		t.Errorf("%d values stored before anything was evicted", n)
	}
	put(t, c, v, 3, 1)
	flush(t, c)
	expect(t, c, v, 1, 1, 0, 1, tiered.MissNone)
}

// Never blocks: with a store that takes nothing, puts go on, the queue stays within its bound and gives up the deepest blocks first.
func TestFullSpillQueueDropsTheDeepest(t *testing.T) {
	mem := memstore.New(memstore.Options{})
	remote := &gated{Store: mem}
	remote.fail.Store(new(store.ErrFull))
	c := newCache(t, remote, func(o *tiered.Options) { o.SpillBytes = 19 << 20 })
	v := shared(generation(1, 1))
	c.SetView(v)
	put(t, c, v, 1, 16)
	s := c.Stats()
	if s.SpillBytes > s.SpillMaxBytes || s.SpillDropped["overflow"] != 1 || s.SpillDropped["incomplete"] != 11 {
		t.Errorf("queue of %d bytes, bound %d, dropped: %v; want 1 for space and the 11 behind it", s.SpillBytes, s.SpillMaxBytes, s.SpillDropped)
	}
	remote.fail.Store(nil) // there is room again: what is left is stored without anybody asking
	flush(t, c)
	other := newCache(t, mem, nil)
	other.SetView(v)
	expect(t, other, v, 1, 16, 0, 4, tiered.MissCold)
	// And the next request of the prefix makes up for what was dropped.
	expect(t, c, v, 1, 16, 16, 0, tiered.MissNone)
	deadline := time.Now().Add(5 * time.Second)
	for n := 0; n < 16 && time.Now().Before(deadline); { // overflows again, each time a bit further
		flush(t, c)
		fetch(t, c, v, 1, 16)
		flush(t, c)
		n, _ = mem.CountPrefix(t.Context(), block.KeyPrefix)
		n /= 2
	}
	third := newCache(t, mem, nil)
	third.SetView(v)
	expect(t, third, v, 1, 16, 0, 16, tiered.MissNone)
}

func TestCloseDrains(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	c, err := tiered.New(tiered.Options{Layout: testLayout, Remote: remote})
	if err != nil {
		t.Fatal(err)
	}
	v := shared(generation(1, 1))
	c.SetView(v)
	put(t, c, v, 1, 5)
	if lost := c.Close(t.Context()); lost != 0 {
		t.Errorf("%d blocks lost", lost)
	}
	if n, _ := remote.CountPrefix(t.Context(), block.KeyPrefix); n != 10 {
		t.Errorf("%d values stored, want 10", n)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := tiered.New(tiered.Options{HotBytes: -2, TTL: -1})
	for _, want := range []string{"HotBytes", "TTL", "BlockTokens"} {
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
}

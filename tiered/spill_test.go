package tiered_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
	"github.com/kvtier/kvtier/tiered"
)

// smallLayout has blocks of 2 KiB.
var smallLayout = block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 2, KVHeads: 2, HeadDim: 16, BlockTokens: 8,
	TPSize: 1, RopeBase: 1, RopeScale: 1, Numerics: "test/1"}

// smallCost is what one of them takes up.
const smallCost = 8<<10 + 512

var smallView = shared(tiered.Generation{Identity: block.Identity{Weights: block.Digest{1}, Layout: smallLayout.Digest()}, Epoch: 1})

// family is the chains of prompts that begin alike: block i of a prompt is named by its i-th letter.
type family struct{ c *block.Chain }

func newFamily() family {
	return family{block.NewChain(nil, smallView.Identity, "", smallLayout.BlockTokens)}
}

func (f family) chain(prompt string) []block.Hash {
	var tokens []int32
	for _, letter := range prompt {
		for range smallLayout.BlockTokens {
			tokens = append(tokens, letter)
		}
	}
	return f.c.AppendHashes(nil, tokens)
}

// request does what a worker does with a prompt: take what is there, compute and put the rest. It returns how many blocks were there.
func (f family) request(t testing.TB, c *tiered.Cache, prompt string) int {
	t.Helper()
	hashes := f.chain(prompt)
	out := bring(t, c, smallView, f.c.Namespace(), hashes, smallLayout)
	n := (out.Hot + out.Remote) / smallLayout.BlockTokens
	for i := n; i < len(hashes); i++ {
		if err := c.Put(smallView, f.c.Namespace(), hashes[:i+1], func(p block.Part, dst []byte) error {
			stamp(dst, smallView.Generation, hashes[i], p.Index)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func key(h block.Hash) string { return block.Key(smallView.Identity.Variant(), smallView.Epoch, h, 0) }

// rooted is a store that tells whether what is put has all that comes before it in its chain.
type rooted struct {
	*memstore.Store
	parent map[string]string // by key; "" for a root
	puts   map[string]int
	orphan string
}

func (r *rooted) know(hashes []block.Hash) {
	before := ""
	for _, h := range hashes {
		r.parent[key(h)] = before
		before = key(h)
	}
}

func (r *rooted) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	with := map[string]bool{}
	for _, it := range items {
		if p := r.parent[it.Key]; p != "" && !with[p] {
			if n, _ := r.Lead(ctx, []string{p}); n == 0 {
				r.orphan = it.Key
			}
		}
		with[it.Key] = true
		r.puts[it.Key]++
	}
	return r.Store.Put(ctx, items, ttl)
}

func newRooted() *rooted {
	return &rooted{Store: memstore.New(memstore.Options{}), parent: map[string]string{}, puts: map[string]int{}}
}

// Whatever is put, evicted, dropped, refused, lost and forgotten in whatever order: nothing is ever stored behind a gap in its chain, the queue
// keeps its bound, and when the trouble is over everything that is asked for again gets stored, under the policies that store at all.
func TestStoredChainsAreCompleteFromTheRoot(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		remote := newRooted()
		faulty := storetest.NewFaulty(remote)
		var tasks []func()
		policy := rapid.SampledFrom([]tiered.WritePolicy{tiered.WriteThrough, tiered.WriteOnEvict, tiered.WriteOnSecondHit}).Draw(rt, "policy")
		c := newCache(t, faulty, func(o *tiered.Options) {
			o.Layout, o.WritePolicy = smallLayout, policy
			o.HotBytes = smallCost * rapid.SampledFrom([]int64{4, 10, 100}).Draw(rt, "hot")
			o.SpillBytes = smallCost * rapid.SampledFrom([]int64{2, 5, 100}).Draw(rt, "queue")
			o.Steps = &tiered.Steps{
				Now: time.Now, Go: func(task func()) { tasks = append(tasks, task) },
				Wait: func(done <-chan struct{}) bool { // a fill is the youngest task that there is
					for len(tasks) > 0 {
						task := tasks[len(tasks)-1]
						tasks = tasks[:len(tasks)-1]
						task()
						select {
						case <-done:
							return true
						default:
						}
					}
					return false
				},
			}
		})
		c.SetView(smallView)
		f := newFamily()
		holes := false // in the middle of chains: they heal as blocks expire
		prompt := func() string { return rapid.StringMatching(`a[ab]{0,6}`).Draw(rt, "prompt") }
		ask := func(p string) int {
			remote.know(f.chain(p))
			return f.request(t, c, p)
		}
		step := func() {
			if len(tasks) > 0 {
				task := tasks[0]
				tasks = tasks[1:]
				task()
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"request": func(*rapid.T) { ask(prompt()) },
			"store":   func(*rapid.T) { step() },
			"fault": func(*rapid.T) {
				faulty.Inject(storetest.Fault{
					Op:    rapid.SampledFrom([]storetest.Op{storetest.Lead, storetest.Get, storetest.Put}).Draw(rt, "op"),
					Count: rapid.IntRange(1, 3).Draw(rt, "times"),
					Err:   rapid.SampledFrom([]error{storetest.ErrInjected, store.ErrFull}).Draw(rt, "what"),
				})
			},
			"heal":  func(*rapid.T) { faulty.Heal() },
			"flush": func(*rapid.T) { _, _ = remote.DeletePrefix(t.Context(), "") },
			"evict": func(*rapid.T) {
				hashes := f.chain(prompt())
				holes = true
				_, _ = remote.Delete(t.Context(), []string{key(hashes[rapid.IntRange(0, len(hashes)-1).Draw(rt, "which")])})
			},
			"": func(rt *rapid.T) {
				if remote.orphan != "" {
					rt.Fatalf("%s was stored although what comes before it is not there", remote.orphan)
				}
				if s := c.Stats(); s.SpillBytes > s.SpillMaxBytes {
					rt.Fatalf("%d bytes queued, bound %d", s.SpillBytes, s.SpillMaxBytes)
				}
			},
		})
		if policy == tiered.WriteOnEvict || holes || c.Stats().HotMaxBytes < 10*smallCost {
			return
		}
		faulty.Heal()
		p := prompt()
		for i := range 30 { // a new block finds out about what was lost when it is stored, and a short queue takes some rounds
			ask(p + string('c'+rune(i)))
			if policy == tiered.WriteOnSecondHit {
				ask(p + string('c'+rune(i))) // only now is it
			}
			for len(tasks) > 0 && c.Stats().SpillBytes > 0 {
				step()
			}
		}
		for i, h := range f.chain(p) {
			if n, _ := remote.Lead(t.Context(), []string{key(h)}); n == 0 {
				rt.Fatalf("block %d of %q is still not stored", i, p)
			}
		}
	})
}

// A block that the remote tier has is not sent again by whoever computed it all the same, because fetching took too long or because another
// worker was as quick.
func TestWhatIsThereIsNotStoredAgain(t *testing.T) {
	remote := newRooted()
	f := newFamily()
	remote.know(f.chain("abcd"))
	first := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
	first.SetView(smallView)
	f.request(t, first, "abc")
	flush(t, first)
	faulty := storetest.NewFaulty(remote)
	faulty.Inject(storetest.Fault{Op: storetest.Get, Count: 1})
	second := newCache(t, faulty, func(o *tiered.Options) { o.Layout = smallLayout })
	second.SetView(smallView)
	if n := f.request(t, second, "abcd"); n != 0 {
		t.Fatalf("%d blocks came through a fault", n)
	}
	flush(t, second)
	if s := second.Stats(); s.Spilled != 1 || s.SpillSkipped != 3 {
		t.Errorf("%d blocks stored and %d skipped, want 1 and 3", s.Spilled, s.SpillSkipped)
	}
	for k, n := range remote.puts {
		if n != 1 {
			t.Errorf("%s was stored %d times", k, n)
		}
	}
}

// After a flush of Redis, what a worker has in memory comes back for the others, although the worker once stored it.
func TestWhatTheTierLostIsStoredAgain(t *testing.T) {
	remote := newRooted()
	f := newFamily()
	c := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
	c.SetView(smallView)
	f.request(t, c, "abc")
	flush(t, c)
	if _, err := remote.DeletePrefix(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	f.request(t, c, "abcd") // the new block finds that its parent is gone
	flush(t, c)
	f.request(t, c, "abcd")
	flush(t, c)
	other := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
	other.SetView(smallView)
	if n := f.request(t, other, "abcd"); n != 4 {
		t.Errorf("another worker finds %d of 4 blocks", n)
	}
}

// An engine that still holds the front of a prompt asks for what follows only. Those blocks are as deep in their chain as any: a full queue
// gives them up first, and they are not stored while what is before them is not there.
func TestBlocksBehindWhatTheEngineHoldsAreNoRoots(t *testing.T) {
	for name, mode := range map[string]gate.Mode{"from the front": gate.Always, "from the back": gate.Auto} {
		t.Run(name, func(t *testing.T) {
			remote, f := newRooted(), newFamily()
			first := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
			first.SetView(smallView)
			f.request(t, first, "abcd")
			flush(t, first)

			var tasks []func()
			run := func() {
				for len(tasks) > 0 {
					task := tasks[0]
					tasks = tasks[1:]
					task()
				}
			}
			c := newCache(t, remote, func(o *tiered.Options) {
				o.Layout, o.SpillBytes = smallLayout, 3*smallCost
				o.Steps = &tiered.Steps{Now: time.Now, Go: func(task func()) { tasks = append(tasks, task) }, Wait: func(<-chan struct{}) bool { run(); return true }}
			})
			c.SetView(smallView)
			chain := f.chain("abcde")
			ask := func(mode gate.Mode) tiered.Outcome {
				s := newSequence(t, smallLayout, 2, stamped(t, smallView.Generation, chain))
				out, err := c.Bring(t.Context(), tiered.Lookup{View: smallView, Namespace: f.c.Namespace(), Chain: chain[:4], Held: 2, Mode: mode}, s)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			if out := ask(mode); out.Remote != 2*smallLayout.BlockTokens {
				t.Fatalf("%d tokens fetched, want those of 2 blocks", out.Remote)
			}
			if _, err := remote.DeletePrefix(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			if err := c.Put(smallView, f.c.Namespace(), chain, func(p block.Part, dst []byte) error { return nil }); err != nil { // finds that d is gone
				t.Fatal(err)
			}
			run()
			again := c.Load(t.Context(), tiered.Lookup{View: smallView, Namespace: f.c.Namespace(), Chain: chain, Held: 2}) // hot: c, d and e are to be stored again
			again.Release()
			f.request(t, c, "xy")
			run()
			remote.know(chain)
			for letter, h := range map[string]block.Hash{"x": f.chain("x")[0], "y": f.chain("xy")[1]} {
				if n, _ := remote.Lead(t.Context(), []string{key(h)}); n != 1 {
					t.Errorf("%s gave way in the queue to what is deeper", letter)
				}
			}
			for i, h := range chain {
				if n, _ := remote.Lead(t.Context(), []string{key(h)}); n != 0 {
					t.Errorf("block %d was stored behind a gap", i)
				}
			}
		})
	}
}

func TestSecondHitStoresWhatComesBack(t *testing.T) {
	remote := newRooted()
	f := newFamily()
	c := newCache(t, remote, func(o *tiered.Options) {
		o.Layout, o.WritePolicy, o.HotBytes = smallLayout, tiered.WriteOnSecondHit, 4*smallCost
	})
	c.SetView(smallView)
	stored := func() int { flush(t, c); return int(c.Stats().Spilled) }
	f.request(t, c, "abc")
	if n := stored(); n != 0 {
		t.Errorf("%d blocks stored of a prompt that was seen once", n)
	}
	f.request(t, c, "abx") // a and b for the second time, from the hot tier
	if n := stored(); n != 2 {
		t.Errorf("%d blocks stored, want the 2 that came back", n)
	}
	f.request(t, c, "mnopqr") // everything else leaves the hot tier
	f.request(t, c, "abc")    // c is computed for the second time
	if n := stored(); n != 3 {
		t.Errorf("%d blocks stored, want 3", n)
	}
}

// The last blocks of a chain leave the hot tier first, and are of no use in the remote tier without the others.
func TestEvictStoresTheChainOfWhatLeaves(t *testing.T) {
	remote := newRooted()
	f := newFamily()
	c := newCache(t, remote, func(o *tiered.Options) {
		o.Layout, o.WritePolicy, o.HotBytes = smallLayout, tiered.WriteOnEvict, 4*smallCost
	})
	c.SetView(smallView)
	f.request(t, c, "abc")
	f.request(t, c, "xy") // makes abc the older chain, its root the youngest in it
	f.request(t, c, "abc")
	f.request(t, c, "xyz")
	flush(t, c)
	remote.know(f.chain("abc"))
	remote.know(f.chain("xyz"))
	if n, _ := remote.CountPrefix(t.Context(), block.KeyPrefix); n == 0 {
		t.Fatal("nothing was stored")
	}
	for _, p := range []string{"abc", "xyz"} {
		for _, h := range f.chain(p) {
			k := key(h)
			have, _ := remote.Lead(t.Context(), []string{k})
			if before := remote.parent[k]; have == 1 && before != "" {
				if n, _ := remote.Lead(t.Context(), []string{before}); n == 0 {
					t.Errorf("%s of %s is there, the one before it is not", k, p)
				}
			}
		}
	}
}

// On a link on which a whole batch takes longer than its time, smaller ones get through; and a tier that is full is not hammered.
func TestSpillingAdaptsToTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &throttled{Store: memstore.New(memstore.Options{}), bytesPerSecond: 20 << 10}
		c := newCache(t, remote, func(o *tiered.Options) { o.Layout, o.SpillTimeout = smallLayout, time.Second })
		c.SetView(smallView)
		f := newFamily()
		for i := range 40 { // 90 KiB: 4 s
			f.request(t, c, fmt.Sprintf("ab%c", 'c'+i))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := c.Flush(ctx); err != nil {
			t.Errorf("%v; %d blocks stored in %d calls", err, c.Stats().Spilled, remote.calls)
		}
	})
}

// throttled takes its time for each byte, and takes nothing of a call that is cut short.
type throttled struct {
	store.Store
	bytesPerSecond int
	calls          int
}

func (s *throttled) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	s.calls++
	n := 0
	for _, it := range items {
		n += len(it.Value)
	}
	select {
	case <-time.After(time.Duration(n) * time.Second / time.Duration(s.bytesPerSecond)):
		return s.Store.Put(ctx, items, ttl)
	case <-ctx.Done():
		return ctx.Err()
	}
}

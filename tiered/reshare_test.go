package tiered_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/tiered"
)

// elsewhere is how many blocks of a prompt a new worker is served from the remote tier.
func elsewhere(t *testing.T, f family, remote store.Store, prompt string) int {
	other := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
	other.SetView(smallView)
	return f.request(t, other, prompt)
}

// A worker that serves a prompt from memory and computes nothing new notices within seconds that Redis has lost everything, whether the prompt
// comes again before that, after it, or both, and shares it again. What was computed once and never used is not worth that.
func TestALostTierIsNoticedWhateverTheTraffic(t *testing.T) {
	for name, policy := range map[string]tiered.WritePolicy{"through": tiered.WriteThrough, "second hit": tiered.WriteOnSecondHit} {
		for when, before := range map[string]bool{"used before it is noticed": true, "used afterwards": false} {
			t.Run(name+", "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					remote, f := newShards(1), newFamily()
					c := newCache(t, remote, func(o *tiered.Options) { o.Layout, o.WritePolicy = smallLayout, policy })
					c.SetView(smallView)
					f.request(t, c, "abc")
					f.request(t, c, "xyz")
					if policy == tiered.WriteOnSecondHit {
						f.request(t, c, "abc")
						f.request(t, c, "xyz")
					}
					time.Sleep(time.Minute)
					if n := elsewhere(t, f, remote, "abc"); n != 3 {
						t.Fatalf("%d blocks are shared, want 3", n)
					}
					flushAll(remote)
					if before {
						f.request(t, c, "abc")
					}
					time.Sleep(3 * time.Second)
					if !before {
						f.request(t, c, "abc")
						time.Sleep(time.Second)
					}
					if n := elsewhere(t, f, remote, "abc"); n != 3 {
						t.Errorf("another worker is served %d of 3 blocks after the tier lost its data", n)
					}
				})
			})
		}
	}
}

// flushAll is FLUSHALL.
func flushAll(s *shards) {
	for i := range s.nodes {
		flushNode(s, i)
	}
}

// flushNode is a node that has come back empty.
func flushNode(s *shards, i int) { _, _ = s.nodes[i].DeletePrefix(context.Background(), "") }

// In a cluster one node of six can come back empty, while another is down: what was lost is stored again.
func TestALostNodeIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := newShards(6), newFamily()
		c := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
		c.SetView(smallView)
		var prompts []string
		for i := range 20 {
			prompts = append(prompts, fmt.Sprintf("%cbcdef", 0x4e00+i))
			f.request(t, c, prompts[i])
			f.request(t, c, prompts[i])
		}
		time.Sleep(time.Minute)
		for n := range 6 {
			sick := (n + 1) % 6
			remote.set(sick, fmt.Errorf("%w: connection refused", store.ErrNode))
			flushNode(remote, n)
			time.Sleep(4 * time.Second)
			remote.set(sick, nil)
			time.Sleep(6 * time.Second)
			for _, p := range prompts {
				for i, h := range f.chain(p) {
					if !remote.there(key(h)) {
						t.Fatalf("node %d: block %d of %q is not stored again", n, i, p)
					}
				}
			}
		}
	})
}

// A worker that has fetched what others stored knows it is there, and notices as well when it is lost.
func TestFetchedBlocksAreSharedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := newShards(3), newFamily()
		first := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
		first.SetView(smallView)
		f.request(t, first, "abcd")
		time.Sleep(time.Second)
		second := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
		second.SetView(smallView)
		if n := f.request(t, second, "abcd"); n != 4 {
			t.Fatalf("%d blocks served", n)
		}
		f.request(t, second, "abcd") // hot now
		first.SetView(tiered.View{}) // the first worker is gone
		flushAll(remote)
		time.Sleep(4 * time.Second)
		if n := elsewhere(t, f, remote, "abcd"); n != 4 {
			t.Errorf("a third worker is served %d of 4 blocks", n)
		}
	})
}

// The data of a replica that lagged, or of a backup, is older than what was stored last.
func TestAnOlderStateIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := newShards(1), newFamily()
		c := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
		c.SetView(smallView)
		f.request(t, c, "abc")
		time.Sleep(time.Minute)
		snapshot := time.Now()
		time.Sleep(time.Minute)
		f.request(t, c, "abcd")
		f.request(t, c, "abcd")
		time.Sleep(10 * time.Minute)
		remote.rollBack(snapshot)
		time.Sleep(3 * time.Second)
		if n := elsewhere(t, f, remote, "abcd"); n != 4 {
			t.Errorf("another worker is served %d of 4 blocks", n)
		}
	})
}

// Without a lease nobody asks, and an idle worker asks once in two seconds.
func TestWatchingCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := newShards(1), newFamily()
		c := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
		c.SetView(smallView)
		f.request(t, c, "abc")
		time.Sleep(time.Second)
		before := remote.calls("lead")
		time.Sleep(10 * time.Minute)
		if n := remote.calls("lead") - before; n == 0 || n > 300 {
			t.Errorf("%d questions in ten minutes, want one in two seconds at most", n)
		}
		local := smallView
		local.Access = tiered.AccessHot
		c.SetView(local)
		before = remote.calls("lead")
		time.Sleep(10 * time.Minute)
		if n := remote.calls("lead") - before; n != 0 {
			t.Errorf("%d questions without a lease", n)
		}
	})
}

// What is shared again does not displace what is new, and does not come as a flood: 64 MiB of blocks in a second at most.
func TestSharingAgainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := newShards(1)
		v := shared(generation(1, 1))
		c := newCache(t, remote, func(o *tiered.Options) { o.HotBytes = 1 << 30 })
		c.SetView(v)
		const chains = 60 // 4 MiB a block
		for seed := range int32(chains) {
			put(t, c, v, seed, 1)
			flush(t, c)
			expect(t, c, v, seed, 1, 1, 0, tiered.MissNone) // used again
		}
		time.Sleep(3 * time.Second)
		flushAll(remote)
		start, last := time.Now(), 0
		for range 12 {
			time.Sleep(time.Second)
			n := 0
			for seed := range int32(chains) {
				_, hashes := chainOf(v.Generation, seed, 1)
				if remote.there(block.Key(v.Identity.Variant(), v.Epoch, hashes[0], 1)) {
					n++
				}
			}
			if n-last > (64+16)/4+1 {
				t.Errorf("%d blocks of 4 MiB stored again within a second", n-last)
			}
			last = n
		}
		if last != chains {
			t.Errorf("%d of %d blocks are shared again after %v", last, chains, time.Since(start))
		}
		if n := c.Stats().SpillDropped["overflow"]; n != 0 {
			t.Errorf("%d blocks dropped", n)
		}
	})
}

// A tier that evicts all the time lacks what a worker believes it has, again and again. That says nothing about other chains: what is asked
// again is what is known to be gone, not everything that is hot.
func TestSteadyEvictionIsNoStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := newShards(1), newFamily()
		c := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
		c.SetView(smallView)
		const hot = 50
		prompt := func(i int) string { return string(rune(0x4e00+i)) + "bcdefghijklmnopqrst" } // 20 blocks
		for i := range hot {
			f.request(t, c, prompt(i))
		}
		time.Sleep(time.Minute)
		before := remote.asks()
		const rounds = 400
		for i := range rounds {
			p := prompt(i % hot)
			last := key(f.chain(p)[len(f.chain(p))-1])
			_, _ = remote.nodes[0].Delete(t.Context(), []string{last}) // evicted
			f.request(t, c, p+string(rune(0x5000+i)))                  // one new block behind it
			time.Sleep(10 * time.Millisecond)
			for j := range 10 { // all hot
				f.request(t, c, prompt((i+j)%hot))
			}
			time.Sleep(10 * time.Millisecond)
		}
		// The one new block asks for the block before it and itself, finds a gap, and then for its chain: some 24 keys. The others ask nothing.
		if per := float64(remote.asks()-before) / rounds; per > 30 {
			t.Errorf("%.0f keys asked for a request, want those of its own chain", per)
		} else {
			t.Logf("%.0f keys asked for a request", per)
		}
		if n := c.Stats().SpillDropped["incomplete"]; n != 0 {
			t.Errorf("%d new blocks dropped although what comes before them is hot", n)
		}
		for i := range hot {
			if n := elsewhere(t, f, remote, prompt(i)); n != 20 {
				t.Errorf("another worker is served %d of 20 blocks", n)
			}
		}
	})
}

// asks is how many keys were asked for.
func (s *shards) asks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

// rollBack goes back to a snapshot.
func (s *shards) rollBack(to time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, at := range s.since {
		if at.After(to) {
			_, _ = s.nodes[s.nodeOf(k)].Delete(context.Background(), []string{k})
		}
	}
}

func (s *shards) calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[method]
}

// Under WriteOnEvict nothing is stored until it leaves: a worker that ends lets go of everything, roots first, for as long as it may.
func TestCloseStoresWhatIsHotUnderEvict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote, f := newShards(3), newFamily()
		for round, pace := range []time.Duration{0, 100 * time.Millisecond} { // the second has time for some only
			c, err := tiered.New(tiered.Options{Layout: smallLayout, Remote: &paced{remote, pace}, WritePolicy: tiered.WriteOnEvict, SpillBytes: 8 * smallCost})
			if err != nil {
				t.Fatal(err)
			}
			c.SetView(smallView)
			var prompts []string
			for i := range 30 {
				prompts = append(prompts, fmt.Sprintf("%cbcd", 0x4e00+100*round+i))
				f.request(t, c, prompts[i])
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			lost := c.Close(ctx)
			cancel()
			here := 0
			for _, p := range prompts {
				whole := true
				for i, h := range f.chain(p) {
					if there := remote.there(key(h)); there && !whole {
						t.Errorf("block %d of %q is stored behind a gap", i, p)
					} else if whole = there; there {
						here++
					}
				}
				if pace > 0 && !remote.there(key(f.chain(p)[0])) {
					t.Errorf("the root of %q is not stored, and others behind roots are", p)
				}
			}
			if here+lost != 120 || pace == 0 && lost != 0 || pace > 0 && lost == 0 {
				t.Errorf("round %d: %d of 120 blocks stored, %d said to be lost", round, here, lost)
			}
		}
	})
}

// paced is a store that takes its time for each call of Put.
type paced struct {
	*shards
	pace time.Duration
}

func (p *paced) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	select {
	case <-time.After(p.pace * time.Duration(len(items))):
		return p.shards.Put(ctx, items, ttl)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A block that was fetched knows the one before it, from whichever end it was read: when the tier has lost both, they are stored again.
func TestFetchedBlocksAreStoredAgainWhenTheyLeave(t *testing.T) {
	for name, mode := range map[string]gate.Mode{"from the front": gate.Always, "from the back": gate.Auto} {
		walk := func(c *tiered.Cache, f family, p string) {
			s := newSequence(t, smallLayout, 0, stamped(t, smallView.Generation, f.chain(p)))
			if _, err := c.Bring(context.Background(), tiered.Lookup{View: smallView, Namespace: f.c.Namespace(), Chain: f.chain(p), Mode: mode}, s); err != nil {
				t.Fatal(err)
			}
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				remote, f := newShards(1), newFamily()
				first := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
				first.SetView(smallView)
				f.request(t, first, "abcdef")
				time.Sleep(time.Second)
				first.SetView(tiered.View{})
				c := newCache(t, remote, func(o *tiered.Options) {
					o.Layout, o.HotBytes, o.WritePolicy, o.FillBytes = smallLayout, 6*smallCost, tiered.WriteOnEvict, 2*smallCost
				})
				c.SetView(smallView)
				walk(c, f, "abcdef")
				if n := c.Stats().HotBlocks; n != 6 {
					t.Fatalf("%d blocks hot, want 6", n)
				}
				flushAll(remote)
				time.Sleep(4 * time.Second) // noticed
				f.request(t, c, "uvwxyz")   // all of it leaves
				time.Sleep(time.Second)
				if n := elsewhere(t, f, remote, "abcdef"); n != 6 {
					t.Errorf("another worker is served %d of 6 blocks; dropped: %v", n, c.Stats().SpillDropped)
				}
			})
		})
	}
}

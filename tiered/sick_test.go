package tiered_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// shards is a remote tier of several nodes, to which keys are dealt as a cluster does, and each of which can be sick.
type shards struct {
	nodes []*memstore.Store
	mu    sync.Mutex
	sick  map[int]error
	asked map[string]int       // calls by method
	keys  int                  // of Lead
	since map[string]time.Time // when each value was put
}

func newShards(n int) *shards {
	s := &shards{sick: map[int]error{}, asked: map[string]int{}, since: map[string]time.Time{}}
	for range n {
		s.nodes = append(s.nodes, memstore.New(memstore.Options{}))
	}
	return s
}

// nodeOf says where a key lies.
func (s *shards) nodeOf(key string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	return int(h.Sum32() % uint32(len(s.nodes)))
}

func (s *shards) set(node int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sick[node] = err
}

// reach returns the node of key, and why it does not answer.
func (s *shards) reach(method, key string) (*memstore.Store, error) {
	n := s.nodeOf(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.sick[n]
	if errors.Is(err, store.ErrFull) && method != "put" {
		err = nil // it answers
	}
	return s.nodes[n], err
}

func (s *shards) count(method string, keys int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[method]++
	s.keys += keys
}

func (s *shards) Lead(ctx context.Context, keys []string) (int, error) {
	s.count("lead", len(keys))
	for i, k := range keys {
		node, err := s.reach("lead", k)
		if err != nil {
			return i, err
		}
		if n, err := node.Lead(ctx, []string{k}); n == 0 {
			return i, err
		}
	}
	return len(keys), nil
}

func (s *shards) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for i, k := range keys {
			node, err := s.reach("get", k)
			n := 0
			if err == nil {
				for n, err = range node.Get(ctx, []string{k}, [][]byte{bufs[i]}) {
				}
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

func (s *shards) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	s.count("put", 0)
	errs := make([]error, len(items))
	for i, it := range items {
		node, err := s.reach("put", it.Key)
		if err == nil {
			err = node.Put(ctx, []store.Item{it}, ttl)
			s.mu.Lock()
			s.since[it.Key] = time.Now()
			s.mu.Unlock()
		}
		errs[i] = err
	}
	return store.Batch(errs)
}

func (s *shards) Delete(ctx context.Context, keys []string) (n int, err error) {
	for _, k := range keys {
		node, _ := s.reach("delete", k)
		m, _ := node.Delete(ctx, []string{k})
		n += m
	}
	return n, nil
}

func (s *shards) Ping(context.Context) error { return nil }
func (s *shards) Close() error               { return nil }

// there reports whether the remote tier has a block, whatever its node says.
func (s *shards) there(key string) bool {
	n, _ := s.nodes[s.nodeOf(key)].Lead(context.Background(), []string{key})
	return n == 1
}

// One node of three is down, or full, for ten minutes. What lies on the others is stored within PauseMax of the spiller, 5 s, and what lies on
// that one within as much of its return; then another worker is served all of it.
func TestOneSickNodeDoesNotStopTheOthers(t *testing.T) {
	for name, sick := range map[string]error{
		"down":              fmt.Errorf("%w: connection refused", store.ErrNode),
		"full":              store.ErrFull,
		"of unknown extent": errors.New("connection reset"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				remote := newShards(3)
				c := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
				c.SetView(smallView)
				f := newFamily()
				var healthy, ill []string
				prompt := func(i int) string { return string(rune(0x4e00 + i)) } // one block each
				remote.set(0, sick)
				for i := 0; len(healthy) < 50 || len(ill) < 20; i++ {
					p := prompt(i)
					if remote.nodeOf(key(f.chain(p)[0])) == 0 {
						ill = append(ill, p)
					} else {
						healthy = append(healthy, p)
					}
					f.request(t, c, p)
				}
				time.Sleep(10 * time.Minute)
				stored := func(prompts []string) (n int) {
					for _, p := range prompts {
						if remote.there(key(f.chain(p)[0])) {
							n++
						}
					}
					return n
				}
				if n := stored(healthy); n != len(healthy) {
					t.Errorf("%d of %d healthy blocks are stored after ten minutes", n, len(healthy))
				}
				late := prompt(1000)
				for i := 1000; remote.nodeOf(key(f.chain(late)[0])) == 0; i++ {
					late = prompt(i)
				}
				f.request(t, c, late)
				time.Sleep(5 * time.Second)
				if stored([]string{late}) == 0 {
					t.Error("a healthy block is not stored within 5 s")
				}
				remote.set(0, nil)
				time.Sleep(5*time.Second + time.Second)
				if n := stored(ill); n != len(ill) {
					t.Errorf("%d of %d blocks of the sick node are stored after its return", n, len(ill))
				}
				other := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
				other.SetView(smallView)
				for _, p := range append(healthy, ill...) {
					if f.request(t, other, p) != 1 {
						t.Fatalf("another worker is not served %q", p)
					}
				}
			})
		})
	}
}

// Chains that lie on many nodes, one of which goes and comes back: within PauseMax of its return all of them are whole.
func TestChainsAreWholeAfterANodeCameBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := newShards(3)
		c := newCache(t, remote, func(o *tiered.Options) { o.Layout = smallLayout })
		c.SetView(smallView)
		f := newFamily()
		remote.set(1, fmt.Errorf("%w: i/o timeout", store.ErrNode))
		var prompts []string
		for i := range 30 {
			prompts = append(prompts, fmt.Sprintf("ab%cdef%c", 'a'+i%7, 0x4e00+i))
			f.request(t, c, prompts[i])
			time.Sleep(time.Second)
		}
		remote.set(1, nil)
		time.Sleep(5*time.Second + time.Second)
		for _, p := range prompts {
			for i, h := range f.chain(p) {
				if !remote.there(key(h)) {
					t.Errorf("block %d of %q is not stored", i, p)
				}
			}
		}
		if s := c.Stats(); s.SpillDropped["incomplete"] != 0 || s.SpillDropped["overflow"] != 0 || s.SpillBytes != 0 {
			t.Errorf("dropped: %v, queued: %d bytes", s.SpillDropped, s.SpillBytes)
		}
	})
}

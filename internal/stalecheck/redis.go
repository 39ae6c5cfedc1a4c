package stalecheck

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/store"
)

var errDown = errors.New("stalecheck: connection refused")

// redis holds values. They are never changed in place, so that snapshots share them.
type redis struct {
	w      *world
	values map[string][]byte
	keys   []string       // for choosing one by number
	at     map[string]int // position in keys
	full   int            // number of values at which it evicts

	snapshots []map[string][]byte
	late      []store.Item // writes that have not arrived yet, or will arrive again
}

func newRedis(w *world) *redis {
	return &redis{w: w, values: map[string][]byte{}, at: map[string]int{}, full: []int{40, 300}[w.rng.IntN(2)]}
}

func (r *redis) set(key string, value []byte) {
	if _, ok := r.values[key]; !ok {
		for len(r.keys) >= r.full {
			r.remove(r.keys[r.w.rng.IntN(len(r.keys))])
		}
		r.at[key] = len(r.keys)
		r.keys = append(r.keys, key)
	}
	r.values[key] = value
}

func (r *redis) remove(key string) bool {
	i, ok := r.at[key]
	if !ok {
		return false
	}
	last := r.keys[len(r.keys)-1]
	r.keys[i] = last
	r.at[last] = i
	r.keys = r.keys[:len(r.keys)-1]
	delete(r.at, key)
	delete(r.values, key)
	return true
}

func (r *redis) flush() {
	clear(r.values)
	clear(r.at)
	r.keys = r.keys[:0]
}

func (r *redis) snapshot() {
	if len(r.snapshots) == 4 {
		r.snapshots = r.snapshots[1:]
	}
	r.snapshots = append(r.snapshots, maps.Clone(r.values))
}

// restore goes back to a snapshot: a replica that lagged was promoted, or a backup was loaded.
func (r *redis) restore() {
	if len(r.snapshots) == 0 {
		return
	}
	old := r.snapshots[r.w.rng.IntN(len(r.snapshots))]
	r.flush()
	for _, k := range slices.Sorted(maps.Keys(old)) {
		r.set(k, old[k])
	}
}

// arrive lets a late write take effect.
func (r *redis) arrive() {
	if len(r.late) == 0 {
		return
	}
	i := r.w.rng.IntN(len(r.late))
	it := r.late[i]
	if r.w.one(2) { // else it arrives once more
		r.late = slices.Delete(r.late, i, i+1)
	}
	r.set(it.Key, it.Value)
}

func (r *redis) deletePrefix(prefix string) int {
	n := 0
	for i := len(r.keys) - 1; i >= 0; i-- {
		if strings.HasPrefix(r.keys[i], prefix) {
			r.remove(r.keys[i])
			n++
			i = min(i, len(r.keys))
		}
	}
	return n
}

// client is one member's connection: a store.Store.
type client struct {
	m *member
	r *redis
}

var _ store.Store = (*client)(nil)

// reach lets something else happen, then says whether Redis can be reached.
func (c *client) reach() error {
	c.r.w.yield()
	if c.m.cutData {
		return errDown
	}
	return nil
}

// leased checks that the remote tier may be used at this moment.
func (c *client) leased(what string) {
	v := c.m.watch.View(c.r.w.now)
	c.r.w.check(iShared, v.State == coordinator.Leased, "%s %s without a lease (%s)", c.m.name, what, v.State)
}

func (c *client) Lead(_ context.Context, keys []string) (int, error) {
	c.leased("asks Redis")
	if err := c.reach(); err != nil {
		return 0, err
	}
	for i, k := range keys {
		if _, ok := c.r.values[k]; !ok {
			return i, nil
		}
	}
	return len(keys), nil
}

func (c *client) Get(_ context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for i, k := range keys {
			if err := c.reach(); err != nil {
				for range keys[i:] {
					if !yield(0, err) {
						return
					}
				}
				return
			}
			v, ok := c.r.values[k]
			var n int
			var err error
			switch {
			case !ok:
				err = store.ErrNotFound
			case len(v) > len(bufs[i])-store.Spare:
				err = store.ErrTooLarge
			case !c.r.w.calm && c.r.w.without&faultPartition == 0 && c.r.w.one(150):
				copy(bufs[i], v[:len(v)/2]) // the connection breaks half-way through
				err = errDown
			default:
				n = copy(bufs[i], v)
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

func (c *client) Put(_ context.Context, items []store.Item, _ time.Duration) error {
	c.leased("stores")
	w := c.r.w
	kept := make([]store.Item, len(items))
	for i, it := range items { // the bytes are on their way: nothing that happens later changes them
		kept[i] = store.Item{Key: it.Key, Value: slices.Clone(it.Value)}
	}
	if err := c.reach(); err != nil {
		return err
	}
	for _, it := range kept {
		switch {
		case !w.calm && w.without&faultLostWrite == 0 && w.one(60):
			continue // acknowledged, and lost by a failover
		case !w.calm && w.without&faultLateWrite == 0 && w.one(25):
			c.r.late = append(c.r.late, it)
			if len(c.r.late) > 16 {
				c.r.late = c.r.late[1:]
			}
			if w.one(2) {
				continue
			}
		}
		c.r.set(it.Key, it.Value)
		w.counts[cStored]++
	}
	if !w.calm && w.one(80) {
		return errDown // the answer was lost
	}
	return nil
}

func (c *client) Delete(_ context.Context, keys []string) (int, error) {
	c.r.w.counts[cBadValues]++
	if err := c.reach(); err != nil {
		return 0, err
	}
	n := 0
	for _, k := range keys {
		if c.r.remove(k) {
			n++
		}
	}
	return n, nil
}

func (c *client) Ping(context.Context) error { return nil }
func (c *client) Close() error               { return nil }

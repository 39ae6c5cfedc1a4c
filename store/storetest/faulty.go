package storetest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/kvtier/kvtier/store"
)

var _ store.Store = (*Faulty)(nil)

// Op names a method of store.Store.
type Op string

// The methods that can be made to fail.
const (
	Lead   Op = "lead"
	Get    Op = "get"
	Put    Op = "put"
	Delete Op = "delete"
	Ping   Op = "ping"
)

// ErrInjected is the fault of a Fault that names no other. store.IsFault is true for it.
var ErrInjected = errors.New("storetest: injected fault")

// Fault is what happens to calls of one method. A Fault with none of Err, Delay, Corrupt and Truncate returns ErrInjected.
type Fault struct {
	// Op is the method; empty means all of them.
	Op Op
	// Keys is true of the keys to which the fault happens, the other keys of a call go well; nil means the whole call. See OnNode.
	Keys func(key string) bool
	// Skip is how many calls go well first.
	Skip int
	// Count is how many calls the fault then happens to; 0 means all.
	Count int
	// Delay passes before the call, or until the context ends, which is then the error.
	Delay time.Duration
	// Err is the error of the call or of its keys, and the store is not asked, except with Applied.
	Err error
	// Applied lets the store do the work before Err is returned: the answer was lost. Not for Get.
	Applied bool
	// FromKey is, for Get with Err and without Keys, the index of the first key that fails.
	FromKey int
	// Corrupt flips a bit in the middle of each value that Get reads.
	Corrupt bool
	// Truncate is how many bytes each value that Get reads lacks at its end.
	Truncate int
}

// OnNode is true of the keys on node i of n, among which keys are dealt out as a cluster does, for Fault.Keys. Node faults want an Err that is
// store.ErrNode, such as ErrInjectedNode.
func OnNode(i, n int) func(key string) bool {
	return func(key string) bool {
		h := fnv.New32a()
		_, _ = h.Write([]byte(key))
		return int(h.Sum32()%uint32(n)) == i
	}
}

// ErrInjectedNode is ErrInjected as the fault of one node of several.
var ErrInjectedNode = fmt.Errorf("%w: %w", store.ErrNode, ErrInjected)

// Faulty is a store whose calls fail on command. It is safe for concurrent use.
type Faulty struct {
	inner store.Store

	mu     sync.Mutex
	faults []*Fault
	calls  map[Op]int
}

// NewFaulty wraps s, without faults so far.
func NewFaulty(s store.Store) *Faulty {
	return &Faulty{inner: s, calls: make(map[Op]int)}
}

// Inject adds a fault. Calls meet the first fault that applies to them, in the order of Inject.
func (f *Faulty) Inject(fault Fault) {
	if fault.Err == nil && fault.Delay == 0 && !fault.Corrupt && fault.Truncate == 0 {
		fault.Err = ErrInjected
	}
	if fault.Count == 0 {
		fault.Count = -1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault)
}

// Heal removes all faults.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Calls returns how often op was called, with or without a fault. For Get, ranging over the sequence is the call.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Unwrap returns the wrapped store.
func (f *Faulty) Unwrap() store.Store { return f.inner }

// met is what a call meets: a fault of the whole call, or of some of its keys.
type met struct {
	whole Fault
	keys  []*Fault // by key; nil unless there is one
}

// next counts a call and returns what it meets.
func (f *Faulty) next(op Op, n int, key func(int) string) met {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	var m met
	for _, fault := range f.faults {
		if fault.Op != "" && fault.Op != op || fault.Count == 0 {
			continue
		}
		var hit []int
		for i := range n {
			if fault.Keys != nil && fault.Keys(key(i)) && (m.keys == nil || m.keys[i] == nil) {
				hit = append(hit, i)
			}
		}
		switch {
		case fault.Keys != nil && len(hit) == 0:
			continue
		case fault.Skip > 0:
			fault.Skip--
			continue
		case fault.Count > 0:
			fault.Count--
		}
		if fault.Keys == nil {
			if m.keys == nil {
				m.whole = *fault
				return m
			}
			hit = nil // those that have met none yet
			for i := range n {
				if m.keys[i] == nil {
					hit = append(hit, i)
				}
			}
		}
		if m.keys == nil {
			m.keys = make([]*Fault, n)
		}
		same := *fault
		for _, i := range hit {
			m.keys[i] = &same
		}
		if fault.Keys == nil {
			break
		}
	}
	return m
}

// wait lets the fault's delay pass.
func (fault Fault) wait(ctx context.Context) error {
	if fault.Delay <= 0 {
		return nil
	}
	t := time.NewTimer(fault.Delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// each runs one method other than Get on n items, one of which key names: inner is given the positions of those that the store is to see.
// It returns how many inner counted, and the outcome of each.
func (f *Faulty) each(ctx context.Context, op Op, n int, key func(int) string, inner func(at []int) (int, error)) (int, error) {
	m := f.next(op, n, key)
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	if m.keys == nil {
		if err := m.whole.wait(ctx); err != nil {
			return 0, err
		}
		if m.whole.Err != nil {
			if m.whole.Applied {
				_, _ = inner(all)
			}
			return 0, m.whole.Err
		}
		return inner(all)
	}
	count, errs := 0, make([]error, n)
	ask := func(at []int) {
		c, err := inner(at)
		count += c
		for j, i := range at {
			if errs[i] == nil {
				errs[i] = store.ErrorOf(err, j)
			}
		}
	}
	prompt, late := m.split(func(i int, err error) { errs[i] = err })
	ask(prompt) // whoever shares a call with a node that hangs has been answered before
	m.wait(ctx, func(i int, err error) { errs[i] = err })
	late = slices.DeleteFunc(late, func(i int) bool { return errs[i] != nil && !m.keys[i].Applied })
	ask(late)
	return count, store.Batch(errs)
}

// split tells the items that the store is to see at once from those that are delayed, and fail with those that are not to be seen.
func (m met) split(fail func(i int, err error)) (prompt, late []int) {
	for i, x := range m.keys {
		switch {
		case x == nil:
			prompt = append(prompt, i)
			continue
		case x.Err != nil:
			fail(i, x.Err)
		}
		if x.Delay > 0 {
			late = append(late, i)
		} else if x.Err == nil || x.Applied {
			prompt = append(prompt, i)
		}
	}
	return prompt, late
}

// wait lets the delays of keys pass at the same time, and calls fail for those that ctx does not allow.
func (m met) wait(ctx context.Context, fail func(i int, err error)) {
	start := time.Now()
	for i, x := range m.keys {
		if x == nil || x.Delay == 0 {
			continue
		}
		rest := Fault{Delay: x.Delay - time.Since(start)}
		if err := rest.wait(ctx); err != nil {
			fail(i, err)
		}
	}
}

// pick returns the elements of v at the given positions.
func pick[T any](v []T, at []int) []T {
	some := make([]T, len(at))
	for j, i := range at {
		some[j] = v[i]
	}
	return some
}

func none(int) string { return "" }

// Lead implements store.Store.
func (f *Faulty) Lead(ctx context.Context, keys []string) (int, error) {
	m := f.next(Lead, len(keys), func(i int) string { return keys[i] })
	if m.keys == nil {
		if err := m.whole.wait(ctx); err != nil {
			return 0, err
		}
		if m.whole.Err == nil {
			return f.inner.Lead(ctx, keys)
		}
		if m.whole.Applied {
			_, _ = f.inner.Lead(ctx, keys)
		}
		return 0, m.whole.Err
	}
	errs := make([]error, len(keys))
	fail := func(i int, err error) { errs[i] = err }
	m.split(fail)
	there, asked := f.inner.Lead(ctx, keys)
	m.wait(ctx, fail)
	for i, err := range errs[:there] {
		if err != nil {
			return i, err
		}
	}
	if there < len(keys) && errs[there] != nil {
		return there, errs[there]
	}
	return there, asked
}

// Get implements store.Store.
func (f *Faulty) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		if store.CheckGet(keys, bufs) != nil {
			f.inner.Get(ctx, keys, bufs)(yield)
			return
		}
		m := f.next(Get, len(keys), func(i int) string { return keys[i] })
		if m.keys != nil {
			f.getKeys(ctx, m, keys, bufs, yield)
			return
		}
		fault := m.whole
		if err := fault.wait(ctx); err != nil {
			fault.Err, fault.FromKey = err, 0
		}
		i := 0
		if fault.Err == nil || fault.FromKey > 0 {
			for n, err := range f.inner.Get(ctx, keys, bufs) {
				if fault.Err != nil && i >= fault.FromKey {
					break
				}
				if err == nil {
					n = fault.spoil(bufs[i][:n])
				}
				if !yield(n, err) {
					return
				}
				i++
			}
		}
		for ; i < len(keys); i++ {
			if !yield(0, fault.Err) {
				return
			}
		}
	}
}

// getKeys is Get of keys of which some have faults of their own.
func (f *Faulty) getKeys(ctx context.Context, m met, keys []string, bufs [][]byte, yield func(int, error) bool) {
	lens, errs := make([]int, len(keys)), make([]error, len(keys))
	fail := func(i int, err error) { errs[i] = err }
	read := func(at []int) {
		j := 0
		for n, err := range f.inner.Get(ctx, pick(keys, at), pick(bufs, at)) {
			i := at[j]
			lens[i], errs[i] = n, err
			if x := m.keys[i]; err == nil && x != nil {
				lens[i] = x.spoil(bufs[i][:n])
			}
			j++
		}
	}
	failed := func(i int) bool { return errs[i] != nil }
	prompt, late := m.split(fail)
	read(slices.DeleteFunc(prompt, failed))
	m.wait(ctx, fail)
	read(slices.DeleteFunc(late, failed))
	for i := range keys {
		if !yield(lens[i], errs[i]) {
			return
		}
	}
}

// spoil changes value and returns its new length.
func (fault Fault) spoil(value []byte) int {
	if fault.Corrupt && len(value) > 0 {
		value[len(value)/2] ^= 0x10
	}
	return max(0, len(value)-fault.Truncate)
}

// Put implements store.Store.
func (f *Faulty) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	if _, err := store.CheckPut(items, ttl); err != nil {
		return f.inner.Put(ctx, items, ttl)
	}
	_, err := f.each(ctx, Put, len(items), func(i int) string { return items[i].Key }, func(at []int) (int, error) {
		return 0, f.inner.Put(ctx, pick(items, at), ttl)
	})
	return err
}

// Delete implements store.Store.
func (f *Faulty) Delete(ctx context.Context, keys []string) (int, error) {
	return f.each(ctx, Delete, len(keys), func(i int) string { return keys[i] }, func(at []int) (int, error) {
		return f.inner.Delete(ctx, pick(keys, at))
	})
}

// Ping implements store.Store.
func (f *Faulty) Ping(ctx context.Context) error {
	_, err := f.each(ctx, Ping, 0, none, func([]int) (int, error) { return 0, f.inner.Ping(ctx) })
	return err
}

// Close implements store.Store. It never fails on command.
func (f *Faulty) Close() error { return f.inner.Close() }

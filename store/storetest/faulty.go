package storetest

import (
	"context"
	"errors"
	"iter"
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
	// Skip is how many calls go well first.
	Skip int
	// Count is how many calls the fault then happens to; 0 means all.
	Count int
	// Delay passes before the call, or until the context ends, which is then the call's error.
	Delay time.Duration
	// Err is the call's error, and the store is not asked, except with Applied.
	Err error
	// Applied lets the store do the work before Err is returned: the answer was lost. Not for Get.
	Applied bool
	// FromKey is, for Get with Err, the index of the first key that fails.
	FromKey int
	// Corrupt flips a bit in the middle of each value that Get reads.
	Corrupt bool
	// Truncate is how many bytes each value that Get reads lacks at its end.
	Truncate int
}

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

// next counts a call and returns its fault, which is empty if it goes well.
func (f *Faulty) next(op Op) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	for _, fault := range f.faults {
		switch {
		case fault.Op != "" && fault.Op != op, fault.Count == 0:
		case fault.Skip > 0:
			fault.Skip--
		default:
			if fault.Count > 0 {
				fault.Count--
			}
			return *fault
		}
	}
	return Fault{}
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

// call runs one method other than Get.
func (f *Faulty) call(ctx context.Context, op Op, inner func() (int, error)) (int, error) {
	fault := f.next(op)
	if err := fault.wait(ctx); err != nil {
		return 0, err
	}
	if fault.Err != nil {
		if fault.Applied {
			_, _ = inner()
		}
		return 0, fault.Err
	}
	return inner()
}

// Lead implements store.Store.
func (f *Faulty) Lead(ctx context.Context, keys []string) (int, error) {
	return f.call(ctx, Lead, func() (int, error) { return f.inner.Lead(ctx, keys) })
}

// Get implements store.Store.
func (f *Faulty) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	seq := f.inner.Get(ctx, keys, bufs)
	return func(yield func(int, error) bool) {
		fault := f.next(Get)
		if err := fault.wait(ctx); err != nil {
			fault.Err, fault.FromKey = err, 0
		}
		i := 0
		if fault.Err == nil || fault.FromKey > 0 {
			for n, err := range seq {
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

// spoil changes value and returns its new length.
func (fault Fault) spoil(value []byte) int {
	if fault.Corrupt && len(value) > 0 {
		value[len(value)/2] ^= 0x10
	}
	return max(0, len(value)-fault.Truncate)
}

// Put implements store.Store.
func (f *Faulty) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	_, err := f.call(ctx, Put, func() (int, error) { return 0, f.inner.Put(ctx, items, ttl) })
	return err
}

// Delete implements store.Store.
func (f *Faulty) Delete(ctx context.Context, keys []string) (int, error) {
	return f.call(ctx, Delete, func() (int, error) { return f.inner.Delete(ctx, keys) })
}

// Ping implements store.Store.
func (f *Faulty) Ping(ctx context.Context) error {
	_, err := f.call(ctx, Ping, func() (int, error) { return 0, f.inner.Ping(ctx) })
	return err
}

// Close implements store.Store. It never fails on command.
func (f *Faulty) Close() error { return f.inner.Close() }

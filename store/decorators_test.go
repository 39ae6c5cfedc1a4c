package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestDecoratorsConform holds every decorator to the contract that it decorates.
func TestDecoratorsConform(t *testing.T) {
	decorators := map[string]func(store.Store) store.Store{
		"Breaker":   func(s store.Store) store.Store { return store.WithBreaker(s, store.BreakerOptions{}) },
		"Deadlines": func(s store.Store) store.Store { return store.WithDeadlines(s, store.Deadlines{}) },
		"Faulty":    func(s store.Store) store.Store { return storetest.NewFaulty(s) },
		"Stack": func(s store.Store) store.Store {
			return store.WithBreaker(store.WithDeadlines(s, store.Deadlines{}), store.BreakerOptions{})
		},
	}
	for name, decorate := range decorators {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, storetest.Harness{
				Open: func(testing.TB) store.Store { return decorate(memstore.New(memstore.Options{})) },
			})
		})
	}
}

func TestAs(t *testing.T) {
	s := store.WithBreaker(store.WithDeadlines(memstore.New(memstore.Options{}), store.Deadlines{}), store.BreakerOptions{})
	if _, ok := store.As[store.Prefixed](s); !ok {
		t.Error("Prefixed is not found through the decorators")
	}
	if _, ok := store.As[*memstore.Store](s); !ok {
		t.Error("the store itself is not found")
	}
	if _, ok := store.As[*storetest.Faulty](s); ok {
		t.Error("a store that is not there is found")
	}
}

// contexts records the deadline that a store sees.
type contexts struct {
	store.Store
	left time.Duration
	has  bool
}

func (c *contexts) Lead(ctx context.Context, _ []string) (int, error) {
	d, has := ctx.Deadline()
	c.left, c.has = time.Until(d), has
	return 0, nil
}

func TestDeadlinesOnlyWhereThereIsNone(t *testing.T) {
	c := &contexts{}
	s := store.WithDeadlines(c, store.Deadlines{Lead: time.Minute})
	_, _ = s.Lead(t.Context(), nil)
	if !c.has || c.left > time.Minute || c.left < 50*time.Second {
		t.Errorf("without a deadline: %v, %v", c.has, c.left)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	_, _ = s.Lead(ctx, nil)
	if c.left < 50*time.Minute {
		t.Errorf("with a deadline: %v", c.left)
	}
	_, _ = store.WithDeadlines(c, store.Deadlines{Lead: -1}).Lead(t.Context(), nil)
	if c.has {
		t.Error("negative means none")
	}
}

func TestFaulty(t *testing.T) {
	f := storetest.NewFaulty(memstore.New(memstore.Options{}))
	item := store.Item{Key: "a", Value: []byte("0123456789")}
	f.Inject(storetest.Fault{Op: storetest.Put, Applied: true, Err: context.DeadlineExceeded, Count: 1})
	if err := f.Put(t.Context(), []store.Item{item}, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Put: %v", err)
	}
	if n, err := f.Lead(t.Context(), []string{"a"}); n != 1 || err != nil {
		t.Errorf("an applied Put left %d keys, %v", n, err)
	}

	f.Inject(storetest.Fault{Op: storetest.Get, Skip: 1, Count: 1, Corrupt: true, Truncate: 3})
	for call, want := range []string{"0123456789", "01234%6", "0123456789"} {
		buf := make([]byte, 12)
		for n, err := range f.Get(t.Context(), []string{"a"}, [][]byte{buf}) {
			if got := string(buf[:n]); got != want || err != nil {
				t.Errorf("Get %d = %q, %v, want %q", call, got, err, want)
			}
		}
	}

	f.Inject(storetest.Fault{Op: storetest.Get, Err: storetest.ErrInjected, FromKey: 1})
	var errs []error
	for _, err := range f.Get(t.Context(), []string{"a", "a", "a"}, [][]byte{make([]byte, 12), make([]byte, 12), nil}) {
		errs = append(errs, err)
	}
	if len(errs) != 3 || errs[0] != nil || errs[1] == nil || errs[2] == nil {
		t.Errorf("Get with a fault from key 1: %v", errs)
	}
	if got := f.Calls(storetest.Get); got != 4 {
		t.Errorf("Calls = %d, want 4", got)
	}
}

// A node of several that fails costs its own keys, whatever the method, and delays the others by no more than the call lasts.
func TestFaultyNode(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{
		"refuses": {Err: storetest.ErrInjectedNode},
		"hangs":   {Err: storetest.ErrInjectedNode, Delay: time.Hour},
		"full":    {Err: store.ErrFull},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := storetest.NewFaulty(memstore.New(memstore.Options{}))
			sick := storetest.OnNode(1, 3)
			fault.Keys = sick
			f.Inject(fault)
			var keys []string
			var items []store.Item
			for i := range 30 {
				keys = append(keys, fmt.Sprint("k", i))
				items = append(items, store.Item{Key: keys[i], Value: []byte(keys[i])})
			}
			call := func() context.Context {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				t.Cleanup(cancel)
				return ctx
			}
			check := func(op string, i int, err error) {
				t.Helper()
				if (err != nil) != sick(keys[i]) {
					t.Errorf("%s: %s of %s, which is sick: %v: %v", name, op, keys[i], sick(keys[i]), err)
				}
			}
			err := f.Put(call(), items, time.Hour)
			for i := range keys {
				check("Put", i, store.ErrorOf(err, i))
			}
			bufs := make([][]byte, len(keys))
			for i := range bufs {
				bufs[i] = make([]byte, 16)
			}
			i := 0
			for n, err := range f.Get(call(), keys, bufs) {
				check("Get", i, err)
				if err == nil && string(bufs[i][:n]) != keys[i] {
					t.Errorf("%s: Get of %s = %q", name, keys[i], bufs[i][:n])
				}
				i++
			}
			if i != len(keys) {
				t.Errorf("%s: Get yielded %d times", name, i)
			}
			first := slices.IndexFunc(keys, sick)
			if n, err := f.Lead(call(), keys); n != first || err == nil {
				t.Errorf("%s: Lead = %d, %v, want %d and why", name, n, err, first)
			}
			if n, err := f.Lead(call(), keys[first+1:first+2]); !sick(keys[first+1]) && (n != 1 || err != nil) {
				t.Errorf("%s: Lead behind the first sick key = %d, %v", name, n, err)
			}
			n, err := f.Delete(call(), keys)
			for i := range keys {
				check("Delete", i, store.ErrorOf(err, i))
				if !sick(keys[i]) {
					n--
				}
			}
			if n != 0 {
				t.Errorf("%s: Delete counted %d too many", name, n)
			}
		})
	}
}

func TestBatchError(t *testing.T) {
	full, sick := fmt.Errorf("put x: %w", store.ErrFull), errors.New("reset by peer")
	if store.Batch(make([]error, 3)) != nil {
		t.Error("a batch without errors is one")
	}
	err := fmt.Errorf("wrapped: %w", store.Batch([]error{nil, full, context.Canceled}))
	for i, want := range []error{nil, store.ErrFull, context.Canceled} {
		if got := store.ErrorOf(err, i); !errors.Is(got, want) {
			t.Errorf("ErrorOf(%d) = %v, want %v", i, got, want)
		}
	}
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "2 of 3 failed, the first: put x") {
		t.Errorf("the batch's error: %v", err)
	}
	if !errors.Is(store.ErrorOf(sick, 7), sick) || store.ErrorOf(nil, 7) != nil {
		t.Error("ErrorOf a batch that failed, or went well, as one")
	}
	for _, c := range []struct {
		want bool
		errs []error
	}{{false, []error{full, nil}}, {true, []error{context.Canceled, sick}}, {true, []error{full, sick}}, {false, []error{context.Canceled}}, {true, []error{sick}}} {
		if got := store.IsFault(store.Batch(c.errs)); got != c.want {
			t.Errorf("IsFault of %v = %v", c.errs, got)
		}
	}
}

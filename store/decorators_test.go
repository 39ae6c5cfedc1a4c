package store_test

import (
	"context"
	"errors"
	"testing"
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

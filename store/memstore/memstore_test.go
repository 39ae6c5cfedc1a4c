package memstore_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
)

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestConformance(t *testing.T) {
	c := &clock{now: time.Unix(1, 0)}
	storetest.Run(t, storetest.Harness{
		Open:    func(testing.TB) store.Store { return memstore.New(memstore.Options{Now: c.Now}) },
		Advance: c.Advance,
	})
}

func BenchmarkMemstore(b *testing.B) {
	storetest.RunBenchmarks(b, storetest.Harness{Open: func(testing.TB) store.Store { return memstore.New(memstore.Options{}) }})
}

func TestEvictsLeastRecentlyUsed(t *testing.T) {
	s := memstore.New(memstore.Options{MaxBytes: 4 * 1200})
	put := func(key string) {
		t.Helper()
		if err := s.Put(t.Context(), []store.Item{{Key: key, Value: make([]byte, 1000)}}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		put(fmt.Sprint(i))
	}
	if n, _ := s.Lead(t.Context(), []string{"0"}); n != 1 { // a use
		t.Fatal("0 is gone early")
	}
	put("4")
	if n, _ := s.Lead(t.Context(), []string{"0", "2", "3", "4"}); n != 4 {
		t.Errorf("Lead = %d, want 4", n)
	}
	if n, _ := s.Lead(t.Context(), []string{"1"}); n != 0 {
		t.Error("1 was used least recently and is still there")
	}
	if st := s.Stats(); st.Evicted != 1 || st.Bytes > 4*1200 || st.Entries != 4 {
		t.Errorf("Stats = %+v", st)
	}
	if err := s.Put(t.Context(), []store.Item{{Key: "huge", Value: make([]byte, 5000)}}, time.Hour); !errors.Is(err, store.ErrFull) {
		t.Errorf("Put beyond MaxBytes: %v, want ErrFull", err)
	}
}

func TestNoEviction(t *testing.T) {
	s := memstore.New(memstore.Options{MaxBytes: 1300, NoEviction: true})
	one := []store.Item{{Key: "a", Value: make([]byte, 1000)}}
	for range 2 { // the second replaces the first
		if err := s.Put(t.Context(), one, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(t.Context(), []store.Item{{Key: "b", Value: make([]byte, 1000)}}, time.Hour); !errors.Is(err, store.ErrFull) {
		t.Errorf("Put: %v, want ErrFull", err)
	}
	if n, err := s.Lead(t.Context(), []string{"a"}); n != 1 || err != nil {
		t.Errorf("reads no longer work: %d, %v", n, err)
	}
}

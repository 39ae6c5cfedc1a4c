package storetest

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
)

// leaser returns the store's power, or skips the case.
func (f *fixture) leaser() store.Leaser {
	f.Helper()
	l, ok := store.As[store.Leaser](f.s)
	if !ok && !f.NoPrefixed {
		f.Fatal("the store is not store.Leaser")
	}
	if !ok {
		f.Skip("not store.Leaser, on purpose")
	}
	return l
}

func testLease(_ *testing.T, f *fixture) {
	l := f.leaser()
	const long, short = 20 * time.Second, 300 * time.Millisecond
	claim := func(key, note string, ttl time.Duration) store.Lease {
		f.Helper()
		got, err := l.Lease(f.ctx, key, note, ttl)
		if err != nil {
			f.Fatalf("Lease(%q): %v", key, err)
		}
		return got
	}
	if got := claim("l:a", "first", long); got != (store.Lease{Granted: true}) {
		f.Errorf("first claim: %+v", got)
	}
	if got := claim("l:a", "second", long); got.Granted || got.Note != "first" || got.Left <= 0 || got.Left > long {
		f.Errorf("claim of a held name: %+v", got)
	}
	if got := claim("l:b", "", short); !got.Granted {
		f.Errorf("claim of another name: %+v", got)
	}
	f.pass(short + 20*time.Millisecond)
	if got := claim("l:b", "", long); !got.Granted {
		f.Errorf("claim of a name that has become free: %+v", got)
	}
	if got := claim("l:a", "third", long); got.Granted || got.Note != "first" {
		f.Errorf("claims that were refused changed it: %+v", got)
	}
}

func testLeaseOnce(_ *testing.T, f *fixture) {
	l := f.leaser()
	var granted atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := l.Lease(f.ctx, "l:contended", "x", 20*time.Second)
			if err != nil {
				f.Errorf("Lease: %v", err)
			} else if got.Granted {
				granted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := granted.Load(); n != 1 {
		f.Errorf("%d of 8 hold the claim", n)
	}
}

func testLeaseRefuses(_ *testing.T, f *fixture) {
	l := f.leaser()
	for _, x := range []struct {
		key, note string
		ttl       time.Duration
	}{
		{"a", "", 0}, {"a", "", -time.Second}, {"a", "", store.MaxLease + time.Millisecond}, {"", "", time.Second},
		{strings.Repeat("k", store.MaxKeyBytes+1), "", time.Second}, {"a", strings.Repeat("n", store.MaxKeyBytes+1), time.Second},
	} {
		_, err := l.Lease(f.ctx, x.key, x.note, x.ttl)
		f.wantErr("Lease of what cannot be", err, store.ErrInvalid)
	}
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := l.Lease(ctx, "a", "", time.Second)
	f.wantErr("Lease", err, context.Canceled)
	if got, err := l.Lease(f.ctx, "a", "", time.Second); err != nil || !got.Granted {
		f.Errorf("after refusals: %+v, %v", got, err)
	}
	if err := f.s.Close(); err != nil {
		f.Errorf("Close: %v", err)
	}
	_, err = l.Lease(f.ctx, "b", "", time.Second)
	f.wantErr("Lease", err, store.ErrClosed)
}

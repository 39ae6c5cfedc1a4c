package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
)

// pinner returns the store's power, or skips the case.
func (f *fixture) pinner() store.Pinner {
	f.Helper()
	p, ok := store.As[store.Pinner](f.s)
	if !ok && !f.NoPins {
		f.Fatal("the store is not store.Pinner")
	}
	if !ok {
		f.Skip("not store.Pinner, on purpose")
	}
	return p
}

func testPin(_ *testing.T, f *fixture) {
	p := f.pinner()
	const short = 150 * time.Millisecond
	for _, k := range []string{"kept", "again", "put", "lost"} {
		if err := f.s.Put(f.ctx, []store.Item{{Key: k, Value: []byte(k)}}, short); err != nil {
			f.Fatal(err)
		}
	}
	if n, err := p.Pin(f.ctx, []string{"kept", "again", "put"}); n != 3 || err != nil {
		f.Fatalf("Pin = %d, %v, want 3", n, err)
	}
	if err := p.Unpin(f.ctx, []string{"again", "none"}, short); err != nil {
		f.Fatalf("Unpin: %v", err)
	}
	if err := f.s.Put(f.ctx, []store.Item{{Key: "put", Value: []byte("anew")}}, short); err != nil {
		f.Fatal(err)
	}
	f.pass(2*short + time.Duration(f.MaxTTLJitter*float64(short)))
	f.wantValue("kept", "kept")
	for _, k := range []string{"again", "put", "lost"} {
		f.wantLead(0, k)
	}
}

func testPinLead(_ *testing.T, f *fixture) {
	p := f.pinner()
	f.put("a", "1", "b", "2", "d", "4")
	for _, c := range []struct {
		want int
		keys []string
	}{{0, nil}, {0, []string{"c"}}, {2, []string{"a", "b", "c", "d"}}, {3, []string{"a", "b", "d"}}} {
		if n, err := p.Pin(f.ctx, c.keys); n != c.want || err != nil {
			f.Errorf("Pin(%q) = %d, %v, want %d", c.keys, n, err, c.want)
		}
	}
}

func testPinCareful(_ *testing.T, f *fixture) {
	p := f.pinner()
	f.put("a", "1")
	f.wantErr("Unpin for no time", p.Unpin(f.ctx, []string{"a"}, 0), store.ErrInvalid)
	// Without a pin there is nothing to give back: the TTL that a value has stays.
	if err := p.Unpin(f.ctx, []string{"a"}, time.Millisecond); err != nil {
		f.Error(err)
	}
	f.pass(20 * time.Millisecond)
	f.wantValue("a", "1")
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := p.Pin(ctx, []string{"a"}); !errors.Is(err, context.Canceled) {
		f.Errorf("Pin with a cancelled context: %v", err)
	}
	if err := p.Unpin(ctx, []string{"a"}, time.Minute); !errors.Is(err, context.Canceled) {
		f.Errorf("Unpin with a cancelled context: %v", err)
	}
}

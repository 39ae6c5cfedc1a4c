package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/kvtier/kvtier/store"
)

// discarder returns the store's power, or skips the case.
func (f *fixture) discarder() store.Discarder {
	f.Helper()
	d, ok := store.As[store.Discarder](f.s)
	if !ok && !f.NoPrefixed {
		f.Fatal("the store is not store.Discarder")
	}
	if !ok {
		f.Skip("not store.Discarder, on purpose")
	}
	return d
}

func (f *fixture) wantDiscard(want bool, key string, maxBytes int, bad func([]byte) bool) {
	f.Helper()
	if got, err := f.discarder().Discard(f.ctx, key, maxBytes, bad); got != want || err != nil {
		f.Errorf("Discard(%q) = %v, %v, want %v", key, got, err, want)
	}
}

func testDiscard(_ *testing.T, f *fixture) {
	f.put("bad", "rotten", "good", "fresh", "long", "longer than allowed")
	is := func(want string) func([]byte) bool {
		return func(value []byte) bool { return string(value) == want }
	}
	f.wantDiscard(false, "good", 10, is("rotten"))
	f.wantDiscard(true, "bad", 10, is("rotten"))
	f.wantDiscard(false, "bad", 10, is("rotten"))
	f.wantDiscard(true, "long", 10, func([]byte) bool {
		f.Error("a value that is too long was shown")
		return false
	})
	f.wantDiscard(false, "none", 10, func([]byte) bool { return true })
	f.wantValue("good", "fresh")
	f.wantLead(0, "bad")
	f.wantLead(0, "long")
}

// testDiscardRace puts a sound value while the bad one is judged: it must survive, even if it is the same length, or the same bytes.
func testDiscardRace(_ *testing.T, f *fixture) {
	for _, fresh := range []string{"sound!", "rotten"} {
		f.put("a", "rotten")
		f.wantDiscard(false, "a", 10, func([]byte) bool {
			f.put("a", fresh)
			return true
		})
		f.wantValue("a", fresh)
	}
	f.put("a", "rotten")
	f.wantDiscard(false, "a", 10, func(value []byte) bool {
		if _, err := f.s.Delete(f.ctx, []string{"a"}); err != nil {
			f.Error(err)
		}
		clear(value) // which is the caller's to look at, not the store's own
		return true
	})
	f.put("a", "2")
	f.wantValue("a", "2")
}

func testDiscardCareful(_ *testing.T, f *fixture) {
	d := f.discarder()
	f.put("a", "1")
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := d.Discard(ctx, "a", 10, func([]byte) bool { return true }); !errors.Is(err, context.Canceled) {
		f.Errorf("Discard with a cancelled context: %v", err)
	}
	f.wantValue("a", "1")
	if err := f.s.Close(); err != nil {
		f.Errorf("Close: %v", err)
	}
	_, err := d.Discard(f.ctx, "a", 10, func([]byte) bool { return true })
	f.wantErr("Discard", err, store.ErrClosed)
}

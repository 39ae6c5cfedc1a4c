package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/kvtier/kvtier/store"
)

// prefixed returns the store's power, or skips the case.
func (f *fixture) prefixed() store.Prefixed {
	f.Helper()
	p, ok := store.As[store.Prefixed](f.s)
	if !ok && !f.NoPrefixed {
		f.Fatal("the store is not store.Prefixed")
	}
	if !ok {
		f.Skip("not store.Prefixed, on purpose")
	}
	return p
}

func testPrefix(_ *testing.T, f *fixture) {
	p := f.prefixed()
	items, keys := batch("dead:", 1500, 10)
	live, liveKeys := batch("live:", 20, 10)
	if err := f.s.Put(f.ctx, append(items, live...), ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	if n, err := p.CountPrefix(f.ctx, "dead:"); n != 1500 || err != nil {
		f.Errorf("CountPrefix = %d, %v, want 1500", n, err)
	}
	if n, err := p.CountPrefix(f.ctx, "none"); n != 0 || err != nil {
		f.Errorf("CountPrefix of nothing = %d, %v, want 0", n, err)
	}
	if n, err := p.CountPrefix(f.ctx, ""); n != 1520 || err != nil {
		f.Errorf("CountPrefix of the empty prefix = %d, %v, want 1520", n, err)
	}
	if n, err := p.DeletePrefix(f.ctx, "dead:"); n != 1500 || err != nil {
		f.Errorf("DeletePrefix = %d, %v, want 1500", n, err)
	}
	f.wantLead(0, keys[0])
	f.wantLead(20, liveKeys...)
}

// testPrefixGlob uses the characters that mean something in Redis patterns.
func testPrefixGlob(_ *testing.T, f *fixture) {
	p := f.prefixed()
	for _, prefix := range []string{"a*", "a?", "a[b]", "a[^b]", `a\`, `a\*`, "a]", "^a", "a-", "a.", "a+", "a|b", "a(", "a$", "a{2}"} {
		f.put(prefix+"x", "1", "axx", "2", "abx", "3", "acx", "4", "aax", "5")
		if n, err := p.CountPrefix(f.ctx, prefix); n != 1 || err != nil {
			f.Errorf("CountPrefix(%q) = %d, %v, want 1", prefix, n, err)
		}
		if n, err := p.DeletePrefix(f.ctx, prefix); n != 1 || err != nil {
			f.Errorf("DeletePrefix(%q) = %d, %v, want 1", prefix, n, err)
		}
		f.wantLead(4, "axx", "abx", "acx", "aax")
	}
}

func testPrefixCancelled(_ *testing.T, f *fixture) {
	p := f.prefixed()
	f.put("a", "1")
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := p.DeletePrefix(ctx, "a"); !errors.Is(err, context.Canceled) {
		f.Errorf("DeletePrefix with a cancelled context: %v", err)
	}
	if _, err := p.CountPrefix(ctx, "a"); !errors.Is(err, context.Canceled) {
		f.Errorf("CountPrefix with a cancelled context: %v", err)
	}
	f.wantLead(1, "a")
}

package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/kvtier/kvtier/store"
)

// sweeper returns the store's power, or skips the case.
func (f *fixture) sweeper() store.Sweeper {
	f.Helper()
	s, ok := store.As[store.Sweeper](f.s)
	if !ok && !f.NoPrefixed {
		f.Fatal("the store is not store.Sweeper")
	}
	if !ok {
		f.Skip("not store.Sweeper, on purpose")
	}
	return s
}

// sweepable stores 900 keys of three prefixes to be swept among 300 that must stay, one of whose prefixes begins like a dead one.
func (f *fixture) sweepable() (dead []string, live []string) {
	f.Helper()
	var items []store.Item
	for _, prefix := range []string{"k:a:1:", "k:a:12:", "k:bb:3:", "k:a:2:", "other:"} {
		for i := range 300 {
			if prefix == "k:a:2:" && i >= 150 || prefix == "other:" && i >= 150 {
				break
			}
			key := fmt.Sprintf("%s%d", prefix, i)
			items = append(items, store.Item{Key: key, Value: []byte("0123456789")})
			if prefix == "k:a:2:" || prefix == "other:" {
				live = append(live, key)
			}
		}
	}
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	return []string{"k:a:1:", "k:a:12:", "k:bb:3:", "none:"}, live
}

func testSweep(_ *testing.T, f *fixture) {
	s := f.sweeper()
	dead, live := f.sweepable()
	var last store.Sweep
	done, err := s.Sweep(f.ctx, dead, store.Sweep{}, func(p store.Sweep) error {
		if p.Deleted < last.Deleted || p.Scanned < last.Scanned {
			f.Errorf("progress went back from %+v to %+v", last, p)
		}
		last = p
		return nil
	})
	if err != nil || done.Deleted != 900 || done.Bytes != 9000 || last.Deleted != 900 || done.Scanned < 1 || done.Nodes < 1 {
		f.Errorf("Sweep = %+v, %v; last progress %+v; want 900 keys of 9000 bytes", done, err, last)
	}
	f.wantLead(300, live...)
	f.wantLead(0, "k:a:1:0")
	if done, err := s.Sweep(f.ctx, nil, store.Sweep{}, nil); err != nil || done.Deleted != 0 {
		f.Errorf("Sweep of nothing = %+v, %v", done, err)
	}
	f.wantLead(300, live...)
}

// testSweepResumes breaks a pass off and goes on.
func testSweepResumes(_ *testing.T, f *fixture) {
	s := f.sweeper()
	dead, live := f.sweepable()
	enough := errors.New("enough for now")
	var at store.Sweep
	for tries := 0; ; tries++ {
		done, err := s.Sweep(f.ctx, dead, at, func(store.Sweep) error { return enough })
		if done.Deleted < at.Deleted {
			f.Fatalf("went back from %+v to %+v", at, done)
		}
		if at = done; !errors.Is(err, enough) {
			if err != nil {
				f.Fatal(err)
			}
			break
		}
		if tries > 1000 {
			f.Fatal("never done")
		}
	}
	if at.Deleted != 900 {
		f.Errorf("%d keys deleted in all, want 900", at.Deleted)
	}
	f.wantLead(300, live...)
}

func testSweepCareful(_ *testing.T, f *fixture) {
	s := f.sweeper()
	dead, live := f.sweepable()
	if _, err := s.Sweep(f.ctx, []string{"k:", ""}, store.Sweep{}, nil); !errors.Is(err, store.ErrInvalid) {
		f.Errorf("Sweep of the empty prefix: %v", err)
	}
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := s.Sweep(ctx, dead, store.Sweep{}, nil); !errors.Is(err, context.Canceled) {
		f.Errorf("Sweep with a cancelled context: %v", err)
	}
	f.wantLead(300, live...)
	f.put("g*x", "1", "gax", "2")
	if done, err := s.Sweep(f.ctx, []string{"g*"}, store.Sweep{}, nil); err != nil || done.Deleted != 1 {
		f.Errorf("Sweep of g* = %+v, %v, want 1", done, err)
	}
}

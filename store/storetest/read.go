package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/kvtier/kvtier/store"
)

func testEmptyBatch(_ *testing.T, f *fixture) {
	f.wantLead(0)
	if lens, _ := yields(f.s.Get(f.ctx, nil, nil)); len(lens) != 0 {
		f.Errorf("Get of nothing yielded %d times", len(lens))
	}
	if err := f.s.Put(f.ctx, nil, ttl); err != nil {
		f.Errorf("Put of nothing: %v", err)
	}
	if n, err := f.s.Delete(f.ctx, nil); n != 0 || err != nil {
		f.Errorf("Delete of nothing = %d, %v", n, err)
	}
}

func testLead(_ *testing.T, f *fixture) {
	f.put("a", "1", "b", "2", "d", "4")
	f.wantLead(1, "a")
	f.wantLead(0, "x")
	f.wantLead(2, "a", "b", "c", "d")
	f.wantLead(0, "c", "a", "b")
	f.wantLead(3, "d", "b", "a")
}

func testLeadMany(_ *testing.T, f *fixture) {
	items, keys := batch("many/", 2048, 8)
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	f.wantLead(2048, keys...)
	if n, err := f.s.Delete(f.ctx, keys[1999:2000]); n != 1 || err != nil {
		f.Fatalf("Delete = %d, %v", n, err)
	}
	f.wantLead(1999, keys...)
}

func testDuplicates(_ *testing.T, f *fixture) {
	f.put("a", "1")
	f.wantLead(3, "a", "a", "a")
	bufs := buffers(2, 8)
	lens, errs := yields(f.s.Get(f.ctx, []string{"a", "a"}, bufs))
	if !slices.Equal(lens, []int{1, 1}) || errs[0] != nil || errs[1] != nil {
		f.Errorf("Get of a key twice = %v, %v", lens, errs)
	}
	if bufs[0][0] != '1' || bufs[1][0] != '1' {
		f.Errorf("Get of a key twice read %q and %q", bufs[0][:1], bufs[1][:1])
	}
	if n, err := f.s.Delete(f.ctx, []string{"a", "a"}); n != 1 || err != nil {
		f.Errorf("Delete of a key twice = %d, %v, want 1", n, err)
	}
}

func testGetMiss(_ *testing.T, f *fixture) {
	f.put("a", "1", "c", "3")
	bufs := buffers(4, 8)
	lens, errs := yields(f.s.Get(f.ctx, []string{"a", "b", "c", "d"}, bufs))
	if len(lens) != 4 {
		f.Fatalf("Get yielded %d times, want 4", len(lens))
	}
	for i, want := range []error{nil, store.ErrNotFound, nil, store.ErrNotFound} {
		f.wantErr(fmt.Sprintf("key %d", i), errs[i], want)
	}
	if lens[2] != 1 || bufs[2][0] != '3' {
		f.Errorf("the key after a miss was not read")
	}
}

// testGetOrder reads values of many sizes, so that small ones that travel together meet large ones that travel alone.
func testGetOrder(_ *testing.T, f *fixture) {
	var items []store.Item
	var keys []string
	var bufs [][]byte
	for i := range 40 {
		n := []int{0, 7, 900, 40 << 10, 300 << 10}[i%5]
		keys = append(keys, fmt.Sprintf("order/%d", i))
		items = append(items, store.Item{Key: keys[i], Value: pattern(i, n)})
		bufs = append(bufs, make([]byte, n+store.Spare))
	}
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	f.checkRead(items, keys, bufs)
}

func testGetTooLarge(_ *testing.T, f *fixture) {
	items, keys := batch("large/", 6, 3000)
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	bufs := buffers(6, 3000)
	bufs[1] = nil
	bufs[2] = make([]byte, 3000+store.Spare-1) // the value fits, the spare bytes do not
	bufs[4] = make([]byte, 100)
	lens, errs := yields(f.s.Get(f.ctx, keys, bufs))
	if len(lens) != 6 {
		f.Fatalf("Get yielded %d times, want 6", len(lens))
	}
	for i, want := range []error{nil, store.ErrTooLarge, store.ErrTooLarge, nil, store.ErrTooLarge, nil} {
		f.wantErr(fmt.Sprintf("key %d", i), errs[i], want)
		if want == nil && !bytes.Equal(bufs[i][:lens[i]], items[i].Value) {
			f.Errorf("key %d read wrong bytes", i)
		}
	}
	_, errs = yields(f.s.Get(f.ctx, keys[:1], [][]byte{make([]byte, 10)}))
	f.wantErr("one key", errs[0], store.ErrTooLarge)
	f.wantLead(6, keys...) // the store goes on
}

func testGetExact(_ *testing.T, f *fixture) {
	items, keys := batch("exact/", 3, 5000)
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	f.checkRead(items, keys, buffers(3, 5000))
	f.checkRead(items[:1], keys[:1], buffers(1, 5000))
	f.checkRead(items, keys, buffers(3, 9000))
}

// testGetBreak leaves the loop and then uses the buffers at once, which the race detector watches.
func testGetBreak(_ *testing.T, f *fixture) {
	items, keys := batch("break/", 24, 300<<10)
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	bufs := buffers(24, 300<<10)
	for stop := range 3 {
		seen := 0
		for _, err := range f.s.Get(f.ctx, keys, bufs) {
			if err != nil {
				f.Fatalf("Get: %v", err)
			}
			if seen == stop {
				break
			}
			seen++
		}
		for _, b := range bufs {
			clear(b)
		}
	}
	for _, b := range bufs {
		if len(bytes.Trim(b, "\x00")) != 0 {
			f.Fatal("a buffer was written after the loop had ended")
		}
	}
	f.checkRead(items, keys, bufs)
}

// testGetTwice ranges over one sequence twice: each time it asks anew.
func testGetTwice(_ *testing.T, f *fixture) {
	seq := f.s.Get(f.ctx, []string{"a"}, buffers(1, 8))
	_, errs := yields(seq)
	f.wantErr("before Put", errs[0], store.ErrNotFound)
	f.put("a", "1")
	lens, errs := yields(seq)
	if errs[0] != nil || lens[0] != 1 {
		f.Errorf("after Put: %d, %v", lens[0], errs[0])
	}
}

func testGetInvalid(_ *testing.T, f *fixture) {
	f.put("a", "1", "b", "2")
	for _, n := range []int{0, 1, 3} {
		_, errs := yields(f.s.Get(f.ctx, []string{"a", "b"}, buffers(n, 8)))
		if len(errs) != 2 {
			f.Fatalf("Get with 2 keys and %d buffers yielded %d times, want 2", n, len(errs))
		}
		for _, err := range errs {
			f.wantErr(fmt.Sprintf("Get with 2 keys and %d buffers", n), err, store.ErrInvalid)
		}
	}
}

// testGetBounds gives Get slices with capacity behind them that is not theirs.
func testGetBounds(_ *testing.T, f *fixture) {
	items, keys := batch("bounds/", 8, 1000)
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	const stride = 1000 + store.Spare + 64
	slab := bytes.Repeat([]byte{0xEE}, 8*stride)
	bufs := make([][]byte, 8)
	for i := range bufs {
		bufs[i] = slab[i*stride : i*stride+1000+store.Spare]
	}
	f.checkRead(items, keys, bufs)
	for i := range bufs {
		if gap := slab[i*stride+1000+store.Spare : (i+1)*stride]; len(bytes.Trim(gap, "\xEE")) != 0 {
			f.Fatalf("Get wrote behind buffer %d", i)
		}
	}
}

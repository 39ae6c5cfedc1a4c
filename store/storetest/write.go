package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
)

func testEmptyValue(_ *testing.T, f *fixture) {
	f.put("empty", "")
	f.wantLead(1, "empty")
	f.wantValue("empty", "")
	lens, errs := yields(f.s.Get(f.ctx, []string{"empty"}, buffers(1, 0)))
	if errs[0] != nil || lens[0] != 0 {
		f.Errorf("Get into a buffer of spare bytes = %d, %v, want 0", lens[0], errs[0])
	}
}

func testBinary(_ *testing.T, f *fixture) {
	keys := []string{"\x00\r\n$5\r\n", "ключ", "a b\"c'", "{tag}x", "\xff\xfe", strings.Repeat("k", store.MaxKeyBytes)}
	for i, k := range keys {
		f.put(k, "\r\n$-1\r\n\x00"+fmt.Sprint(i))
	}
	for i, k := range keys {
		f.wantValue(k, "\r\n$-1\r\n\x00"+fmt.Sprint(i))
	}
	f.wantLead(len(keys), keys...)
}

func testLargest(_ *testing.T, f *fixture) {
	items := []store.Item{{Key: "largest", Value: pattern(1, store.MaxValueBytes)}}
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put of MaxValueBytes: %v", err)
	}
	f.checkRead(items, []string{"largest"}, buffers(1, store.MaxValueBytes))
}

func testPutTooLarge(_ *testing.T, f *fixture) {
	items := []store.Item{{Key: "small", Value: []byte("1")}, {Key: "large", Value: make([]byte, store.MaxValueBytes+1)}}
	f.wantErr("Put of MaxValueBytes+1", f.s.Put(f.ctx, items, ttl), store.ErrTooLarge)
	f.wantLead(0, "small")
	f.wantLead(0, "large")
}

func testPutInvalid(_ *testing.T, f *fixture) {
	one := []store.Item{{Key: "a", Value: []byte("1")}}
	f.wantErr("Put without TTL", f.s.Put(f.ctx, one, 0), store.ErrInvalid)
	f.wantErr("Put with a negative TTL", f.s.Put(f.ctx, one, -time.Second), store.ErrInvalid)
	long := []store.Item{one[0], {Key: strings.Repeat("k", store.MaxKeyBytes+1)}}
	f.wantErr("Put of a long key", f.s.Put(f.ctx, long, ttl), store.ErrInvalid)
	f.wantLead(0, "a")
}

func testOverwrite(_ *testing.T, f *fixture) {
	f.put("a", "a long first value")
	f.put("a", "2")
	f.wantValue("a", "2")
	f.put("a", "3", "b", "4")
	f.wantValue("a", "3")
}

func testPutCopies(_ *testing.T, f *fixture) {
	value := []byte("before")
	items := []store.Item{{Key: "a", Value: value}}
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	copy(value, "AFTER!")
	items[0] = store.Item{}
	f.wantValue("a", "before")

	buf := make([]byte, 32)
	for range f.s.Get(f.ctx, []string{"a"}, [][]byte{buf}) {
	}
	clear(buf)
	f.wantValue("a", "before")
}

func testTTL(_ *testing.T, f *fixture) {
	const short = 400 * time.Millisecond
	f.put("stays", "1")
	if err := f.s.Put(f.ctx, []store.Item{{Key: "goes", Value: []byte("1")}}, short); err != nil {
		f.Fatalf("Put: %v", err)
	}
	if f.Advance != nil { // on a real clock a slow machine would fail this
		f.pass(short - time.Millisecond)
	}
	f.wantLead(1, "goes")
	f.pass(short + time.Duration(f.MaxTTLJitter*float64(short)) + 20*time.Millisecond)
	f.wantLead(0, "goes")
	_, err := f.get("goes")
	f.wantErr("Get of an expired key", err, store.ErrNotFound)
	if n, err := f.s.Delete(f.ctx, []string{"goes"}); n != 0 || err != nil {
		f.Errorf("Delete of an expired key = %d, %v, want 0", n, err)
	}
	f.wantLead(1, "stays")
}

func testDelete(_ *testing.T, f *fixture) {
	items, keys := batch("delete/", 300, 10)
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
	if n, err := f.s.Delete(f.ctx, append([]string{"absent"}, keys[:200]...)); n != 200 || err != nil {
		f.Errorf("Delete = %d, %v, want 200", n, err)
	}
	f.wantLead(0, keys[0])
	f.wantLead(100, keys[200:]...)
	if n, err := f.s.Delete(f.ctx, keys[:200]); n != 0 || err != nil {
		f.Errorf("second Delete = %d, %v, want 0", n, err)
	}
}

func testCancelled(_ *testing.T, f *fixture) {
	f.put("kept", "1")
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	f.wantErr("Put", f.s.Put(ctx, []store.Item{{Key: "a", Value: []byte("1")}}, ttl), context.Canceled)
	_, err := f.s.Delete(ctx, []string{"kept"})
	f.wantErr("Delete", err, context.Canceled)
	_, err = f.s.Lead(ctx, []string{"kept"})
	f.wantErr("Lead", err, context.Canceled)
	f.wantErr("Ping", f.s.Ping(ctx), context.Canceled)
	_, errs := yields(f.s.Get(ctx, []string{"kept", "a"}, buffers(2, 8)))
	if len(errs) != 2 {
		f.Fatalf("Get yielded %d times, want 2", len(errs))
	}
	f.wantErr("Get", errs[0], context.Canceled)
	f.wantErr("Get", errs[1], context.Canceled)
	f.wantLead(0, "a")
	f.wantLead(1, "kept")

	past, cancel := context.WithDeadline(f.ctx, time.Now().Add(-time.Second))
	defer cancel()
	if err := f.s.Put(past, []store.Item{{Key: "a", Value: []byte("1")}}, ttl); !errors.Is(err, context.DeadlineExceeded) {
		f.Errorf("Put after the deadline: %v, want %v", err, context.DeadlineExceeded)
	}
	f.wantLead(0, "a")
}

func testPing(_ *testing.T, f *fixture) {
	if err := f.s.Ping(f.ctx); err != nil {
		f.Errorf("Ping: %v", err)
	}
}

func testConcurrent(_ *testing.T, f *fixture) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			items, keys := batch(fmt.Sprintf("concurrent/%d/", g), 20, 20<<10)
			bufs := buffers(20, 20<<10)
			for range 5 {
				if err := f.s.Put(f.ctx, items, ttl); err != nil {
					f.Errorf("Put: %v", err)
					return
				}
				if n, err := f.s.Lead(f.ctx, keys); n != len(keys) || err != nil {
					f.Errorf("Lead = %d, %v", n, err)
				}
				i := 0
				for n, err := range f.s.Get(f.ctx, keys, bufs) {
					if err != nil || string(bufs[i][:n]) != string(items[i].Value) {
						f.Errorf("Get of %q: %d bytes, %v", keys[i], n, err)
					}
					i++
				}
				if n, err := f.s.Delete(f.ctx, keys); n != len(keys) || err != nil {
					f.Errorf("Delete = %d, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
}

// testClosed is last because it needs no live store afterwards.
func testClosed(_ *testing.T, f *fixture) {
	f.put("a", "1")
	if err := f.s.Close(); err != nil {
		f.Errorf("Close: %v", err)
	}
	if err := f.s.Close(); err != nil {
		f.Errorf("second Close: %v", err)
	}
	_, err := f.s.Lead(f.ctx, []string{"a"})
	f.wantErr("Lead", err, store.ErrClosed)
	_, errs := yields(f.s.Get(f.ctx, []string{"a", "b"}, buffers(2, 8)))
	if len(errs) != 2 {
		f.Fatalf("Get yielded %d times, want 2", len(errs))
	}
	f.wantErr("Get", errs[1], store.ErrClosed)
	f.wantErr("Put", f.s.Put(f.ctx, []store.Item{{Key: "a"}}, ttl), store.ErrClosed)
	_, err = f.s.Delete(f.ctx, []string{"a"})
	f.wantErr("Delete", err, store.ErrClosed)
	f.wantErr("Ping", f.s.Ping(f.ctx), store.ErrClosed)
}

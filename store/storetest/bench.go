package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
)

// RunBenchmarks measures Lead, Get and Put in the batches that the tier uses. Bytes per second count values.
func RunBenchmarks(b *testing.B, h Harness) {
	s := h.Open(b)
	b.Cleanup(func() { _ = s.Close() })

	items, keys := batch("bench/lead/", 2048, 8)
	mustPut(b, s, items)
	for _, n := range []int{64, 2048} {
		b.Run(fmt.Sprintf("Lead/keys=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, err := s.Lead(b.Context(), keys[:n]); got != n || err != nil {
					b.Fatalf("Lead = %d, %v", got, err)
				}
			}
		})
	}
	for _, size := range []struct{ count, valueBytes int }{{64, 32 << 10}, {8, 1 << 20}, {4, 2 << 20}} {
		name := fmt.Sprintf("values=%dx%dKiB", size.count, size.valueBytes>>10)
		items, keys := batch("bench/"+name+"/", size.count, size.valueBytes)
		b.Run("Put/"+name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size.count * size.valueBytes))
			for b.Loop() {
				mustPut(b, s, items)
			}
		})
		mustPut(b, s, items)
		bufs := buffers(size.count, size.valueBytes)
		b.Run("Get/"+name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size.count * size.valueBytes))
			for b.Loop() {
				for n, err := range s.Get(b.Context(), keys, bufs) {
					if n != size.valueBytes || err != nil {
						b.Fatalf("Get = %d, %v", n, err)
					}
				}
			}
		})
	}
}

func mustPut(b *testing.B, s store.Store, items []store.Item) {
	b.Helper()
	if err := s.Put(b.Context(), items, time.Hour); err != nil {
		b.Fatalf("Put: %v", err)
	}
}

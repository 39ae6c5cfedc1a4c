package redisstore_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/kvtier/kvtier/internal/rawredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// TestSpeed divides Get, Put and Lead by hand-written RESP over the same socket, in rounds that take turns in one process. It prints medians
// of the rounds' ratios and judges nothing: machines differ, and so do their neighbours.
//
//	go test -c -o speed ./store/redisstore && internal/rawredis/measure.sh redis-server ./speed -test.run '^TestSpeed$' -test.v
func TestSpeed(t *testing.T) {
	addr := os.Getenv("KVTIER_BENCH_ADDR")
	if addr == "" {
		t.Skip("KVTIER_BENCH_ADDR names no server; see internal/rawredis/measure.sh")
	}
	s := open(t, redisstore.Options{URL: "redis://" + addr})
	raw, err := rawredis.Open("tcp", addr, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw2, err := rawredis.Open("tcp", addr, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer raw2.Close()
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("KVTIER_BENCH_ROUNDS"), "15"))
	if err != nil {
		t.Fatal(err)
	}
	const total = 128 << 20
	values, slab := make([]byte, total), make([]byte, total+total>>8)
	for i := 0; i < len(values); i += 8 {
		values[i] = byte(i >> 12)
		values[i+1] = byte(i >> 20)
	}
	for i := 0; i < len(slab); i += 4096 {
		slab[i] = 1
	}
	for _, size := range []int{256 << 10, 1 << 20, 2 << 20, 2<<20 + 320} {
		n := total / size
		w := work{s: s, keys: make([]string, n), items: make([]store.Item, n), values: make([][]byte, n), bufs: make([][]byte, n)}
		for i := range n {
			w.keys[i] = fmt.Sprintf("speed/%d", i)
			w.values[i] = values[i*size : (i+1)*size]
			w.items[i] = store.Item{Key: w.keys[i], Value: w.values[i]}
			w.bufs[i] = slab[i*(size+64):][:size+64]
		}
		if err := raw.Set(w.keys, w.values, 2); err != nil {
			t.Fatal(err)
		}
		compare(t, fmt.Sprintf("GET %d KiB", size>>10), n, n*size, rounds, []method{
			{"raw, 1 connection, 2 in flight", func() error { _, err := raw.Get(w.keys, w.bufs, 2); return err }},
			{"raw, 2 connections", func() error { _, err := raw2.Get(w.keys, w.bufs, 2); return err }},
			{"redisstore, one batch", func() error { return w.get(n, false) }},
			{"redisstore, batches of 8", func() error { return w.get(8, false) }},
			{"redisstore, one batch, xxh3", func() error { return w.get(n, true) }},
		})
		compare(t, fmt.Sprintf("SET %d KiB", size>>10), n, n*size, rounds, []method{
			{"raw, 1 connection, 2 in flight", func() error { return raw.Set(w.keys, w.values, 2) }},
			{"raw, 2 connections", func() error { return raw2.Set(w.keys, w.values, 2) }},
			{"redisstore, one batch", func() error { return s.Put(t.Context(), w.items, time.Hour) }},
			{"redisstore, batches of 4 MiB", func() error {
				for i := 0; i < n; i += 4 << 20 / min(size, 4<<20) {
					if err := s.Put(t.Context(), w.items[i:min(n, i+4<<20/size)], time.Hour); err != nil {
						return err
					}
				}
				return nil
			}},
		})
	}
	var keys []string
	for i := range 2048 {
		keys = append(keys, fmt.Sprintf("kvt1:d:fyczjh5g7v3hnjpd:1:%043d:0", i))
		if err := put(t, s, keys[i], []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	one, err := rawredis.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	compare(t, "EXISTS of 2048", 2048, 2048, 15, []method{
		{"bare pipeline", func() error { _, err := one.Exists(keys); return err }},
		{"redisstore.Lead", func() error { _, err := s.Lead(t.Context(), keys); return err }},
	})
}

type work struct {
	s            *redisstore.Store
	keys         []string
	items        []store.Item
	values, bufs [][]byte
}

func (w *work) get(batch int, verify bool) error {
	var sum uint64
	for i := 0; i < len(w.keys); i += batch {
		j := i
		for n, err := range w.s.Get(context.Background(), w.keys[i:min(len(w.keys), i+batch)], w.bufs[i:min(len(w.keys), i+batch)]) {
			if err != nil {
				return err
			}
			if verify {
				sum ^= xxh3.Hash(w.bufs[j][:n])
			}
			j++
		}
	}
	runtime.KeepAlive(sum)
	return nil
}

type method struct {
	name string
	do   func() error
}

// compare runs all methods in turn, rounds times, and prints medians; the first method is the yardstick.
func compare(t *testing.T, what string, ops, bytes, rounds int, methods []method) {
	t.Helper()
	type sample struct{ seconds, cpu, allocs, allocBytes float64 }
	got := make([][]sample, len(methods))
	for r := range rounds + 1 {
		for turn := range methods {
			i := (turn + r) % len(methods)
			m := methods[i]
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			cpu, start := cpuTime(), time.Now()
			if err := m.do(); err != nil {
				t.Fatalf("%s, %s: %v", what, m.name, err)
			}
			s := sample{seconds: time.Since(start).Seconds(), cpu: cpuTime() - cpu}
			runtime.ReadMemStats(&after)
			s.allocs = float64(after.Mallocs-before.Mallocs) / float64(ops)
			s.allocBytes = float64(after.TotalAlloc-before.TotalAlloc) / float64(ops)
			if r > 0 { // the first round warms up
				got[i] = append(got[i], s)
			}
		}
	}
	median := func(i int, f func(s, yard sample) float64) float64 {
		var v []float64
		for r := range got[i] {
			v = append(v, f(got[i][r], got[0][r]))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	for i, m := range methods {
		t.Logf("%-15s %-32s %6.2f GB/s %8.3f ms  ratio %.2f  cpu %.3f s/GB  %6.1f allocs/op %7.0f B/op", what, m.name,
			median(i, func(s, _ sample) float64 { return float64(bytes) / s.seconds / 1e9 }),
			median(i, func(s, _ sample) float64 { return s.seconds * 1e3 }),
			median(i, func(s, y sample) float64 { return y.seconds / s.seconds }),
			median(i, func(s, _ sample) float64 { return s.cpu / float64(bytes) * 1e9 }),
			median(i, func(s, _ sample) float64 { return s.allocs }),
			median(i, func(s, _ sample) float64 { return s.allocBytes }))
	}
}

func cpuTime() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

package tiered_test

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// residentBytes is the memory of this process, by the system's account.
func residentBytes(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// Blocks come and go, by the gigabyte: computed here, spilled, evicted, and fetched again. The process stays within the bound of its hot tier,
// 15 % and 64 MiB.
func TestChurnStaysWithinTheBound(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("moves gigabytes; the race detector has memory of its own for each byte")
	}
	const hotBytes = 256 << 20
	v := shared(generation(1, 1))
	// The remote tier is in this process too: it is small, made first, and what it holds counts as ours before the churn.
	remote := memstore.New(memstore.Options{MaxBytes: 48 << 20})
	a := newCache(t, remote, nil)
	a.SetView(v)
	put(t, a, v, 1, 8)
	flush(t, a)
	before := residentBytes(t)
	c := newCache(t, remote, func(o *tiered.Options) { o.HotBytes = hotBytes })
	c.SetView(v)
	limit := before + hotBytes + hotBytes*15/100 + 64<<20
	var peak int64
	for seed := range int32(40) {
		ns, hashes := chainOf(v.Generation, 100+seed, 12)
		for i := range hashes { // 48 MiB of new blocks, every page of them written
			err := c.Put(v, ns, hashes[:i+1], func(p block.Part, dst []byte) error {
				for j := range dst {
					dst[j] = byte(j)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		fetch(t, c, v, 1, 8) // and 32 MiB that are hot or come back
		peak = max(peak, residentBytes(t))
	}
	if s := c.Stats(); s.HotBytes > hotBytes || s.HotBytes < hotBytes*9/10 {
		t.Errorf("%d bytes hot of %d after the churn", s.HotBytes, hotBytes)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("peak %d MiB resident, %d MiB before, limit %d MiB; slabs %d MiB, Go heap %d MiB", peak>>20, before>>20, limit>>20,
		c.Stats().SlabBytes>>20, m.HeapSys>>20)
	if peak > limit {
		t.Errorf("the process grew to %d MiB, at most %d MiB are allowed", peak>>20, limit>>20)
	}
}

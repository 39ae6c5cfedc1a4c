package tiered

import (
	"bytes"
	"cmp"
	"slices"
	"sync"

	"github.com/kvtier/kvtier/block"
)

// MaxTenantStats is how many tenants Stats names.
const MaxTenantStats = 16

// maxTenants bounds the tenants that are counted one by one: a client can make up a new cache_salt for every request.
const maxTenants = 1024

// TenantStats is what one tenant takes up.
type TenantStats struct {
	Namespace   block.Digest // zero for all tenants together that are not named
	HotBytes    int64        // held in the hot tier now
	StoredBytes int64        // written to the remote tier by this worker since it started; what has expired since is not subtracted
}

// tenants counts stored bytes by namespace. Where there are too many, those that come later are counted together.
type tenants struct {
	mu    sync.Mutex
	bytes map[block.Digest]int64
	rest  int64
}

func (t *tenants) stored(ns block.Digest, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bytes == nil {
		t.bytes = map[block.Digest]int64{}
	}
	if _, known := t.bytes[ns]; !known && len(t.bytes) >= maxTenants {
		t.rest += n
		return
	}
	t.bytes[ns] += n
}

// top joins what is stored with what is hot and sorts by the sum of both, largest first.
func (t *tenants) top(hot map[block.Digest]int64) []TenantStats {
	t.mu.Lock()
	all := make([]TenantStats, 0, len(t.bytes)+len(hot))
	for ns, n := range t.bytes {
		all = append(all, TenantStats{Namespace: ns, HotBytes: hot[ns], StoredBytes: n})
		delete(hot, ns)
	}
	rest := TenantStats{StoredBytes: t.rest}
	t.mu.Unlock()
	for ns, n := range hot {
		all = append(all, TenantStats{Namespace: ns, HotBytes: n})
	}
	slices.SortFunc(all, func(a, b TenantStats) int {
		return cmp.Or(cmp.Compare(b.HotBytes+b.StoredBytes, a.HotBytes+a.StoredBytes), bytes.Compare(a.Namespace[:], b.Namespace[:]))
	})
	for len(all) > MaxTenantStats {
		last := all[len(all)-1]
		rest.HotBytes, rest.StoredBytes = rest.HotBytes+last.HotBytes, rest.StoredBytes+last.StoredBytes
		all = all[:len(all)-1]
	}
	if rest != (TenantStats{}) {
		all = append(all, rest)
	}
	return all
}

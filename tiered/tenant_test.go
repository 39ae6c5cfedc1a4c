package tiered_test

import (
	"testing"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// tenantChain is the chain of one tenant's prompt as a request under v computes it.
func tenantChain(v tiered.View, salt string, n int) (block.Digest, []block.Hash) {
	c := block.NewChain(nil, v.Identity, salt, testLayout.BlockTokens)
	c.After(v.Cuts[c.Namespace()])
	return c.Namespace(), c.AppendHashes(nil, make([]int32, n*testLayout.BlockTokens))
}

func putTenant(t *testing.T, c *tiered.Cache, v tiered.View, salt string, n int) {
	t.Helper()
	ns, hashes := tenantChain(v, salt, n)
	for i, h := range hashes {
		if err := c.Put(v, ns, hashes[:i+1], func(p block.Part, dst []byte) error { stamp(dst, v.Generation, h, p.Index); return nil }); err != nil {
			t.Fatal(err)
		}
	}
}

func served(t *testing.T, c *tiered.Cache, v tiered.View, salt string, n int) (blocks int) {
	t.Helper()
	ns, hashes := tenantChain(v, salt, n)
	out := bring(t, c, v, ns, hashes, testLayout)
	return (out.Hot + out.Remote) / testLayout.BlockTokens
}

func bytesOf(c *tiered.Cache, salt string) tiered.TenantStats {
	for _, s := range c.Stats().Tenants {
		if s.Namespace == block.Namespace(nil, salt) {
			return s
		}
	}
	return tiered.TenantStats{}
}

// TestAPurgedTenantIsForgotten: hot blocks, stored blocks, queued spills, a request under way and a put under way.
func TestAPurgedTenantIsForgotten(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newCache(t, remote, nil), newCache(t, remote, nil)
	before := shared(generation(1, 1))
	a.SetView(before)
	b.SetView(before)
	for _, salt := range []string{"acme", "other"} {
		putTenant(t, a, before, salt, 3)
		flush(t, a)
		if n := served(t, b, before, salt, 3); n != 3 { // hot on the second worker now, too
			t.Fatalf("%d blocks of %s before the purge", n, salt)
		}
	}
	if s := bytesOf(a, "acme"); s.HotBytes == 0 || s.HotBytes != bytesOf(a, "other").HotBytes || s.StoredBytes == 0 {
		t.Errorf("accounted before the purge: %+v", a.Stats().Tenants)
	}
	ns, hashes := tenantChain(before, "acme", 3)
	underWay := b.Load(t.Context(), tiered.Lookup{View: before, Namespace: ns, Chain: hashes})
	if underWay.Blocks() != 3 {
		t.Fatal("nothing to hand over")
	}

	after := before
	after.Cuts = map[block.Digest]block.Cut{block.Namespace(nil, "acme"): {1}}
	a.SetView(after)
	b.SetView(after)
	if underWay.Release() {
		t.Error("a request under way may use what it copied")
	}
	putTenant(t, b, before, "acme", 3) // a request that began before the purge
	for name, c := range map[string]*tiered.Cache{"first": a, "second": b} {
		if n := served(t, c, after, "acme", 3); n != 0 {
			t.Errorf("%s worker: %d purged blocks served", name, n)
		}
		if n := served(t, c, before, "acme", 3); n != 0 {
			t.Errorf("%s worker: %d purged blocks served to a request with the old view", name, n)
		}
		if n := served(t, c, after, "other", 3); n != 3 {
			t.Errorf("%s worker: %d blocks of another tenant, want 3", name, n)
		}
		if s := bytesOf(c, "acme"); s.HotBytes != 0 {
			t.Errorf("%s worker: %d bytes of a purged tenant are hot", name, s.HotBytes)
		}
	}
	putTenant(t, a, after, "acme", 2)
	flush(t, a)
	if n := served(t, b, after, "acme", 3); n != 2 {
		t.Errorf("%d blocks from after the purge, want 2", n)
	}
	again := after
	again.Cuts = map[block.Digest]block.Cut{block.Namespace(nil, "acme"): {2}}
	b.SetView(again)
	if n := served(t, b, again, "acme", 3); n != 0 {
		t.Errorf("%d blocks served after the second purge", n)
	}
}

func TestTenantStatsAreBounded(t *testing.T) {
	c := newCache(t, memstore.New(memstore.Options{}), nil)
	v := shared(generation(1, 1))
	c.SetView(v)
	var salts []string
	for i := range 20 {
		salts = append(salts, string(rune('a'+i)))
		putTenant(t, c, v, salts[i], 1)
	}
	putTenant(t, c, v, "z", 3)
	flush(t, c)
	s := c.Stats()
	if len(s.Tenants) != tiered.MaxTenantStats+1 || s.Tenants[0].Namespace != block.Namespace(nil, "z") || !s.Tenants[tiered.MaxTenantStats].Namespace.IsZero() {
		t.Fatalf("%d tenants, first %v", len(s.Tenants), s.Tenants[0])
	}
	var hot int64
	for _, x := range s.Tenants {
		hot += x.HotBytes
	}
	if hot != s.HotBytes {
		t.Errorf("tenants have %d bytes, the tier %d", hot, s.HotBytes)
	}
}

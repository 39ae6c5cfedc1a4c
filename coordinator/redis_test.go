package coordinator

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestRealRedis runs what depends on the server itself against one in a container: the script, capped reads, hints over the network,
// heartbeats that expire, reclaim, a flush.
func TestRealRedis(t *testing.T) {
	control := func(t *testing.T) *Control {
		srv := pool.Get(t)
		rdb := dialControl(redis.UniversalOptions{Addrs: []string{srv.Addr()}})
		t.Cleanup(func() { _ = rdb.Close() })
		return NewControl(rdb)
	}
	t.Run("swap", func(t *testing.T) { swapConditions(t, control(t)) })
	t.Run("two coordinators", func(t *testing.T) {
		shared := control(t)
		runTwoCoordinators(t, func(*testing.T) *Control { return shared })
	})
	t.Run("takeover", func(t *testing.T) {
		takeoverTests(t, func(t *testing.T, fn func(*duo)) {
			srv := pool.Get(t) // empties it
			runDuo(t, func(t *testing.T) *Control {
				rdb := dialControl(redis.UniversalOptions{Addrs: []string{srv.Addr()}})
				t.Cleanup(func() { _ = rdb.Close() })
				return NewControl(rdb)
			}, 600*time.Millisecond, fn)
		})
	})
	t.Run("everything restarts", func(t *testing.T) {
		aftermathTests(t, control, 600*time.Millisecond, func(t *testing.T, fn func(*testing.T)) { fn(t) })
	})
	t.Run("life", func(t *testing.T) {
		ctl := control(t)
		disk := &prefixed{rdb: ctl.rdb}
		c := newCoordinator(t, Options{Control: ctl, Store: disk, Lease: 400 * time.Millisecond, Reconcile: 50 * time.Millisecond})
		c.Start()
		defer c.Close()
		res := must2(t)(c.Register(t.Context(), "m", identity(1, 1), "v1"))
		v, e := res.Version.Variant, res.Version.Epoch
		fill(t, ctl, v, e, 200)
		w, err := NewWatch(WatchOptions{Control: ctl, Model: "m", Poll: 200 * time.Millisecond, Lease: 400 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		w.Start()
		defer w.Close()
		eventually(t, "leased", func() bool { return w.View().State == Leased })
		time.Sleep(300 * time.Millisecond) // subscribed
		begun := time.Now()
		purged := must2(t)(c.Purge(t.Context(), "m", AllVersions))
		eventually(t, "purge seen", func() bool { return w.View().Gen >= purged.Gen })
		t.Logf("a purge reached the worker within %v", time.Since(begun).Round(time.Millisecond))
		eventually(t, "acknowledged", func() bool {
			st, err := c.Status(t.Context(), "m")
			return err == nil && st.Invalidation.Complete && st.Invalidation.Acked == 1
		})
		eventually(t, "reclaimed twice", func() bool {
			st, err := c.Status(t.Context(), "m")
			return err == nil && len(st.Reclaims) == 0
		})
		if n := count(t, ctl, v, e); n != 0 {
			t.Errorf("%d dead entries left", n)
		}
		before := w.View().Gen
		if err := ctl.rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "re-asserted after a flush", func() bool { v := w.View(); return v.Gen > before && v.State == Leased })
	})
}

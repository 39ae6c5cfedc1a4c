package worker_test

import (
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/worker"
)

// TestAPurgedTenantIsNotServedOnAnyWorker runs a coordinator, two workers that follow it and a shared tier: what a purged tenant had is
// neither served hot nor fetched, whichever worker is asked, and the other tenants keep theirs.
func TestAPurgedTenantIsNotServedOnAnyWorker(t *testing.T) {
	srv := miniredis.RunT(t)
	remote := memstore.New(memstore.Options{})
	control := func() *coordinator.Control {
		rdb := redis.NewClient(&redis.Options{Addr: srv.Addr()})
		t.Cleanup(func() { _ = rdb.Close() })
		return coordinator.NewControl(rdb)
	}
	coord, err := coordinator.New(coordinator.Options{Control: control()})
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("of the cluster")
	var workers []*worker.Replica
	var watches []*coordinator.Watch
	for range 2 {
		var r *worker.Replica
		w, err := coordinator.NewWatch(coordinator.WatchOptions{Control: control(), Model: "m", OnChange: func(coordinator.View) { r.Refresh() }})
		if err != nil {
			t.Fatal(err)
		}
		r = newReplica(t, v1, remote, func(o *worker.Options) { o.Grants, o.Secret = w, secret })
		e, _ := r.Resident()
		if _, err := coord.Register(t.Context(), "m", e.Identity(), v1); err != nil {
			t.Fatal(err)
		}
		w.Start()
		t.Cleanup(func() { _ = w.Close() })
		workers, watches = append(workers, r), append(watches, w)
	}
	await := func(gen uint64) {
		t.Helper()
		for i, w := range watches {
			if _, err := w.Await(t.Context(), gen); err != nil {
				t.Fatal(err)
			}
			for begun := time.Now(); workers[i].Cache().View().Cuts == nil || w.View().Gen < gen; time.Sleep(time.Millisecond) {
				if time.Since(begun) > 10*time.Second {
					t.Fatal("the worker did not follow")
				}
			}
			workers[i].Refresh()
		}
	}
	await(1)
	ask := func(r *worker.Replica, salt string) worker.Result {
		t.Helper()
		return complete(t, r, worker.Request{Prompt: speech, Salt: salt, MaxTokens: 4})
	}
	want := map[string]string{}
	for _, salt := range []string{"acme", "other", ""} {
		want[salt] = ask(workers[0], salt).Text
		flush(t, workers[0])
		if res := ask(workers[1], salt); res.RemoteTokens == 0 || ask(workers[1], salt).HotTokens == 0 {
			t.Fatalf("tenant %q: nothing shared before the purge: %+v", salt, res)
		}
	}
	res, err := coord.PurgeTenant(t.Context(), "m", block.Namespace(secret, "acme"))
	if err != nil {
		t.Fatal(err)
	}
	await(res.Gen)
	for i, r := range workers {
		for salt, text := range want {
			got := ask(r, salt)
			if got.Text != text {
				t.Errorf("worker %d, tenant %q: another output", i, salt)
			}
			if salt == "acme" && i == 0 && got.CachedTokens() != 0 {
				t.Errorf("worker %d serves %d tokens of the purged tenant", i, got.CachedTokens())
			}
			if salt != "acme" && got.HotTokens == 0 {
				t.Errorf("worker %d: tenant %q lost its entries", i, salt)
			}
		}
		if i == 0 {
			// The second worker shall find nothing of before the purge. What the first has computed since is right.
			n, err := remote.DeletePrefix(t.Context(), "")
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			if got := ask(workers[1], "acme"); got.CachedTokens() != 0 {
				t.Errorf("worker 1 serves %d hot tokens of the purged tenant", got.CachedTokens())
			}
		}
	}
	if st, err := coord.Status(t.Context(), "m"); err != nil || st.Invalidation.Gen != res.Gen {
		t.Errorf("%+v, %v", st.Invalidation, err)
	}
}

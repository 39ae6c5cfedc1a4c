package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

// followed is a worker that follows a real coordinator over an embedded Redis.
type followed struct {
	replica *worker.Replica
	coord   *coordinator.Coordinator
	redis   *miniredis.Miniredis
}

func follow(t *testing.T, on coordinator.OnExpiry) *followed {
	t.Helper()
	f := &followed{redis: miniredis.RunT(t)}
	rdb := redis.NewClient(&redis.Options{Addr: f.redis.Addr(), MaxRetries: -1, ContextTimeoutEnabled: true})
	t.Cleanup(func() { rdb.Close() })
	control := coordinator.NewControl(rdb)
	var err error
	if f.coord, err = coordinator.New(coordinator.Options{Control: control, NoAutoActivate: true}); err != nil {
		t.Fatal(err)
	}
	watch, err := coordinator.NewWatch(coordinator.WatchOptions{
		Control: control, Model: "m", Poll: 50 * time.Millisecond, Lease: 300 * time.Millisecond,
		OnChange: func(coordinator.View) { f.replica.Refresh() },
	})
	if err != nil {
		t.Fatal(err)
	}
	f.replica = newReplica(t, v1, memstore.New(memstore.Options{}), func(o *worker.Options) { o.Grants, o.OnExpiry = watch, on })
	var checkpoints []worker.Checkpoint
	for _, name := range []string{v1, v2} {
		e := open(t, name, llama.Options{})
		checkpoints = append(checkpoints, worker.Checkpoint{Label: name, Identity: e.Identity(), Open: func(context.Context) (engine.Engine, error) {
			return open(t, name, llama.Options{}), nil
		}})
		if _, err := f.coord.Register(t.Context(), "m", e.Identity(), name); err != nil {
			t.Fatal(err)
		}
	}
	watch.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.replica.Follow(ctx, watch, checkpoints)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := watch.Close(); err != nil {
			t.Log(err) // Redis may be gone by then
		}
	})
	return f
}

func (f *followed) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !poll(ok) {
		t.Fatalf("never %s: view %+v", what, f.replica.Cache().View())
	}
}

func (f *followed) awaitAccess(t *testing.T, a tiered.Access) {
	t.Helper()
	f.await(t, "access "+a.String(), func() bool { return f.replica.Cache().View().Access == a })
}

func (f *followed) activate(t *testing.T, version string) {
	t.Helper()
	if _, err := f.coord.Activate(t.Context(), "m", version, false); err != nil {
		t.Fatal(err)
	}
}

func TestAWorkerFollowsTheRecord(t *testing.T) {
	f := follow(t, coordinator.Local)
	f.await(t, "synced", func() bool { return f.replica.Cache().View().Access == tiered.AccessNone })
	if got := complete(t, f.replica, worker.Request{Prompt: speech}); got.Miss != tiered.MissUnshared {
		t.Errorf("a registered variant that is not active: miss %v, want %v", got.Miss, tiered.MissUnshared)
	}
	f.activate(t, v1)
	f.awaitAccess(t, tiered.AccessShared)
	complete(t, f.replica, worker.Request{Prompt: speech})
	if got := complete(t, f.replica, worker.Request{Prompt: speech}); got.HotTokens == 0 || got.Epoch == 0 {
		t.Errorf("active: %d hot tokens in epoch %d", got.HotTokens, got.Epoch)
	}
	f.activate(t, v2)
	f.await(t, "swapped", func() bool { _, label := f.replica.Resident(); return label == v2 })
	f.awaitAccess(t, tiered.AccessShared)
	if got := complete(t, f.replica, worker.Request{Prompt: speech}); got.CachedTokens() != 0 || got.Label != v2 {
		t.Errorf("after the activation: %d cached tokens on %s", got.CachedTokens(), got.Label)
	}
	before := complete(t, f.replica, worker.Request{Prompt: "x"}).Epoch
	if _, err := f.coord.Purge(t.Context(), "m", coordinator.AllVersions); err != nil {
		t.Fatal(err)
	}
	f.await(t, "in another epoch", func() bool { return f.replica.Cache().View().Epoch > before })
	if got := complete(t, f.replica, worker.Request{Prompt: speech}); got.CachedTokens() != 0 {
		t.Errorf("after the purge: %d cached tokens", got.CachedTokens())
	}
}

// Without a lease a local worker goes on with its own entries, a strict one with none; both answer.
func TestALeaseThatExpires(t *testing.T) {
	for on, want := range map[coordinator.OnExpiry]tiered.Access{coordinator.Local: tiered.AccessHot, coordinator.Strict: tiered.AccessNone} {
		t.Run(string(on), func(t *testing.T) {
			f := follow(t, on)
			f.activate(t, v1)
			f.awaitAccess(t, tiered.AccessShared)
			complete(t, f.replica, worker.Request{Prompt: speech})
			f.redis.Close()
			f.awaitAccess(t, want)
			if got := complete(t, f.replica, worker.Request{Prompt: speech}); (got.HotTokens > 0) != (on == coordinator.Local) {
				t.Errorf("%d hot tokens without a lease", got.HotTokens)
			}
			if err := f.redis.Restart(); err != nil {
				t.Fatal(err)
			}
			f.awaitAccess(t, tiered.AccessShared)
		})
	}
}

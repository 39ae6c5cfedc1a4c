package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/block"
)

func newCoordinator(t *testing.T, opt Options) *Coordinator {
	t.Helper()
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must2(t *testing.T) func(Result, error) Result {
	return func(r Result, err error) Result {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// fill stores entries under a grant, as a worker would.
func fill(t *testing.T, c *Control, v block.Variant, e block.Epoch, n int) {
	t.Helper()
	for i := range n {
		if err := c.rdb.Set(t.Context(), block.Key(v, e, block.Hash{byte(i)}, 0), "kv", time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func count(t *testing.T, c *Control, v block.Variant, e block.Epoch) int {
	t.Helper()
	keys, err := c.rdb.Keys(t.Context(), block.EpochPrefix(v, e)+"*").Result()
	if err != nil {
		t.Fatal(err)
	}
	return len(keys)
}

func TestReclaimTwoPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		ctl := srv.control(t)
		disk := &prefixed{rdb: ctl.rdb}
		c := newCoordinator(t, Options{Control: ctl, Store: disk})
		res := must2(t)(c.Register(t.Context(), "m", identity(1, 1), "v1"))
		v, e := res.Version.Variant, res.Version.Epoch
		fill(t, ctl, v, e, 100)
		c.Start()
		defer c.Close()
		time.Sleep(3 * time.Second)
		if n := count(t, ctl, v, e); n != 100 {
			t.Fatalf("%d live entries left of 100", n)
		}
		must2(t)(c.Purge(t.Context(), "m", AllVersions))
		time.Sleep(2 * time.Second) // no worker has acknowledged: the lease has to pass
		if n := count(t, ctl, v, e); n != 100 {
			t.Fatalf("reclaimed before the lease ended: %d left", n)
		}
		time.Sleep(DefaultLease)
		if n := count(t, ctl, v, e); n != 0 {
			t.Fatalf("%d dead entries left after the lease", n)
		}
		fill(t, ctl, v, e, 3) // a writer that was late
		st, err := c.Status(t.Context(), "m")
		if err != nil || len(st.Reclaims) != 1 || st.Reclaims[0].Swept == 0 {
			t.Errorf("between the passes: %+v, %v", st.Reclaims, err)
		}
		time.Sleep(DefaultLease + 2*time.Second)
		if n := count(t, ctl, v, e); n != 0 {
			t.Errorf("%d late entries left after the second pass", n)
		}
		if st, err = c.Status(t.Context(), "m"); err != nil || len(st.Reclaims) != 0 {
			t.Errorf("after the second pass: %+v, %v", st.Reclaims, err)
		}
	})
}

func TestAcknowledgementMakesReclaimEarly(t *testing.T) {
	d := Dead{Epoch: 1, Gen: 5, Since: start.UnixMilli()}
	soon := start.Add(time.Second)
	for name, tt := range map[string]struct {
		d     Dead
		now   time.Time
		beats []Heartbeat
		want  int
	}{
		"nobody there":                 {d, soon, nil, 0},
		"others only":                  {d, soon, []Heartbeat{{Model: "n", Gen: 9}}, 0},
		"all have acted":               {d, soon, []Heartbeat{{Model: "m", Gen: 5}, {Model: "m", Gen: 6}, {Model: "n"}}, 1},
		"one lags":                     {d, soon, []Heartbeat{{Model: "m", Gen: 5}, {Model: "m", Gen: 4}}, 0},
		"one holds nothing":            {d, soon, []Heartbeat{{Model: "m", Gen: 5}, {Model: "m", State: Unsynced}}, 1},
		"one lags beyond the lease":    {d, start.Add(DefaultLease), []Heartbeat{{Model: "m", Gen: 4}}, 1},
		"the clock was stepped back":   {d, start.Add(-time.Hour), nil, 1},
		"between the passes":           {Dead{Epoch: 1, Gen: 5, Since: 1, Swept: start.UnixMilli()}, soon, []Heartbeat{{Model: "m", Gen: 5}}, 0},
		"a lease after the first pass": {Dead{Epoch: 1, Gen: 5, Since: 1, Swept: start.UnixMilli()}, start.Add(DefaultLease), nil, 2},
	} {
		if got := tt.d.due(tt.now, DefaultLease, "m", tt.beats); got != tt.want {
			t.Errorf("%s: pass %d, want %d", name, got, tt.want)
		}
	}
}

// TestRaceCrashBetweenRecordAndReclaim: what is to be reclaimed stands in the record, so that the next coordinator goes on.
func TestRaceCrashBetweenRecordAndReclaim(t *testing.T) { // race 23
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		ctl := srv.control(t)
		first := newCoordinator(t, Options{Control: ctl})
		res := must2(t)(first.Register(t.Context(), "m", identity(1, 1), "v1"))
		v, e := res.Version.Variant, res.Version.Epoch
		fill(t, ctl, v, e, 10)
		must2(t)(first.Revoke(t.Context(), "m", "v1")) // and never Start: it crashed here

		disk := &prefixed{rdb: ctl.rdb, err: errors.New("redis is down for data")}
		second := newCoordinator(t, Options{Control: srv.control(t), Store: disk})
		second.Start()
		time.Sleep(20 * time.Second)
		if len(disk.passes()) < 2 {
			t.Errorf("a failing pass is not repeated: %v", disk.passes())
		}
		if err := second.Close(); err != nil { // crashed while it failed
			t.Fatal(err)
		}
		disk.fail(nil)
		third := newCoordinator(t, Options{Control: srv.control(t), Store: disk})
		third.Start()
		defer third.Close()
		time.Sleep(2*DefaultLease + 3*time.Second)
		if n := count(t, ctl, v, e); n != 0 {
			t.Errorf("%d entries left", n)
		}
		if st, err := third.Status(t.Context(), "m"); err != nil || len(st.Reclaims) != 0 {
			t.Errorf("still to reclaim: %+v, %v", st.Reclaims, err)
		}
	})
}

// TestRaceTwoCoordinators lets several write at once: every change is in the end result, generations are distinct, nothing is corrupt.
func TestRaceTwoCoordinators(t *testing.T) { // race 22
	runTwoCoordinators(t, func(t *testing.T) *Control { return nil })
}

func runTwoCoordinators(t *testing.T, control func(*testing.T) *Control) {
	t.Helper()
	srv := newServer(t)
	cs := make([]*Coordinator, 3)
	for i := range cs {
		ctl := control(t)
		if ctl == nil {
			ctl = srv.control(t)
		}
		cs[i] = newCoordinator(t, Options{Control: ctl, Reconcile: 5 * time.Millisecond})
		cs[i].Start()
		defer cs[i].Close()
	}
	const each = 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	gens := map[uint64]string{}
	for i, c := range cs {
		wg.Go(func() {
			for n := range each {
				what := fmt.Sprintf("%d-%d", i, n)
				res, err := c.Register(t.Context(), "m", identity(byte(i*each+n), 7), what)
				if err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
				mu.Lock()
				if other, ok := gens[res.Gen]; ok && res.Changed {
					t.Errorf("%s and %s both wrote generation %d", what, other, res.Gen)
				}
				gens[res.Gen] = what
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	st, err := cs[0].Status(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Versions) != len(cs)*each || st.Gen != uint64(len(cs)*each) {
		t.Errorf("%d versions at generation %d, want %d of each: somebody wrote more or less than once", len(st.Versions), st.Gen, len(cs)*each)
	}
	active := slices.DeleteFunc(st.Versions, func(v Version) bool { return v.State != Active })
	if len(active) != 1 {
		t.Errorf("%d versions were activated as the first one", len(active))
	}
}

// TestRaceFlushUnderLoad flushes Redis while a coordinator writes: whatever was answered to a caller is there in the end.
func TestRaceFlushUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		c := newCoordinator(t, Options{Control: srv.control(t)})
		c.Start()
		defer c.Close()
		for n := range 30 {
			must2(t)(c.Register(t.Context(), "m", identity(byte(n), 1), ""))
			if n%4 == 3 {
				srv.FlushAll()
			}
			if n%8 == 7 {
				time.Sleep(3 * time.Second)
			}
		}
		srv.FlushAll()
		time.Sleep(3 * time.Second)
		st, err := c.Status(t.Context(), "m")
		if err != nil || len(st.Versions) != 30 {
			t.Errorf("%d versions, %v; want 30", len(st.Versions), err)
		}
		if names, err := c.Models(t.Context()); err != nil || !slices.Equal(names, []string{"m"}) {
			t.Errorf("models: %v, %v", names, err)
		}
	})
}

// TestRaceBackupRestored: a coordinator that remembers nothing finds a backup in which a revoked version is active. Workers know better, and
// their heartbeats keep the revoked entries from coming back.
func TestRaceBackupRestored(t *testing.T) { // race 21
	inBubble(t, nil, func(b *bubble) {
		backup := b.read()
		if _, err := b.coord.Revoke(b.Context(), "m", "v1"); err != nil {
			b.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		b.want(3, Leased)
		b.raw(backup)
		fresh := newCoordinator(b.T, Options{Control: b.srv.control(b.T)})
		fresh.Start()
		defer fresh.Close()
		time.Sleep(10 * time.Second)
		if v := b.watch.View(); v.State != Leased || v.Gen < 4 {
			b.Fatalf("the worker stays at generation %d, %s: %s", v.Gen, v.State, v.Problem)
		}
		r := stateFrom(b.T, backup)
		v1 := identity(1, 1).Variant()
		if g, ok := b.watch.Grant(v1); ok && g.Epoch <= r.Variants[v1].Epoch {
			b.Errorf("revoked entries of epoch %d are granted again", g.Epoch)
		}
	})
}

// TestNonsenseHeartbeatsDoNotKeepTheCacheCold: each rewrite because of what a worker says costs the cache, so they are rationed.
func TestNonsenseHeartbeatsDoNotKeepTheCacheCold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		ctl := srv.control(t)
		c := newCoordinator(t, Options{Control: ctl})
		must2(t)(c.Register(t.Context(), "m", identity(1, 1), "v1"))
		c.Start()
		defer c.Close()
		for range 60 { // a minute of claims to be ahead
			st, err := c.Status(t.Context(), "m")
			if err != nil {
				t.Fatal(err)
			}
			h := Heartbeat{Incarnation: "liar", Model: "m", Gen: st.Gen + 10, Sum: "?", State: Leased}
			if err := ctl.Beat(t.Context(), h, time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		st, err := c.Status(t.Context(), "m")
		if err != nil {
			t.Fatal(err)
		}
		if n := len(st.Reclaims); n < 1 || n > 7 {
			t.Errorf("%d new epochs in a minute, want one per two leases", n)
		}
	})
}

func TestDamagedRecordWithoutMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		ctl := srv.control(t)
		c := newCoordinator(t, Options{Control: ctl})
		if err := srv.Set(recordPrefix+"m", "{broken"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Register(t.Context(), "m", identity(1, 1), ""); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), recordPrefix+"m") {
			t.Errorf("got %v, want ErrRecord with the key's name", err)
		}
		if got, _ := srv.Get(recordPrefix + "m"); got != "{broken" {
			t.Errorf("it was overwritten by %q", got)
		}
		if _, err := c.Purge(t.Context(), "other", AllVersions); !errors.Is(err, ErrNoModel) {
			t.Errorf("purge of a model that does not exist: %v", err)
		}
	})
}

func TestReadyFollowsRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		c := newCoordinator(t, Options{Control: srv.control(t)})
		if c.Ready() == nil {
			t.Error("ready before the first round")
		}
		c.Start()
		defer c.Close()
		time.Sleep(2 * time.Second)
		if err := c.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		srv.cut(true)
		time.Sleep(5 * time.Second)
		if c.Ready() == nil {
			t.Error("ready without Redis")
		}
		srv.cut(false)
		time.Sleep(5 * time.Second)
		if err := c.Ready(); err != nil {
			t.Errorf("not ready again: %v", err)
		}
	})
}

func TestConditionsOfSwap(t *testing.T) {
	srv := newServer(t)
	swapConditions(t, srv.control(t))
}

func swapConditions(t *testing.T, ctl *Control) {
	t.Helper()
	a := &acts{}
	ctx := t.Context()
	one := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	two := must(t)(one.Register(identity(2, 1), "v2", true, a.at(start)))
	if _, err := ctl.Load(ctx, "m"); !errors.Is(err, ErrNoModel) {
		t.Fatalf("load of nothing: %v", err)
	}
	first, err := ctl.Swap(ctx, Stored{}, one)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ctl.Swap(ctx, Stored{}, one); !errors.Is(err, ErrConflict) {
		t.Errorf("create over an existing record: %v", err)
	}
	found, err := ctl.Load(ctx, "m")
	if err != nil || string(found.raw) != string(first.raw) || found.Sum() != first.Sum() {
		t.Fatalf("load: %s, %v", found.raw, err)
	}
	if _, err := ctl.Swap(ctx, found, two); err != nil {
		t.Fatal(err)
	}
	if _, err := ctl.Swap(ctx, found, two); !errors.Is(err, ErrConflict) {
		t.Errorf("a second write over the same record: %v", err)
	}
	// A value beyond the cap is read up to it, and can be replaced by who has read that.
	if err := ctl.rdb.Set(ctx, recordPrefix+"m", strings.Repeat("x", 1<<20), 0).Err(); err != nil {
		t.Fatal(err)
	}
	found, err = ctl.Load(ctx, "m")
	if !errors.Is(err, ErrRecord) || len(found.raw) != MaxRecordBytes+1 {
		t.Fatalf("load of a huge record: %d bytes, %v", len(found.raw), err)
	}
	if _, err := ctl.Swap(ctx, found, two); err != nil {
		t.Errorf("replacing it: %v", err)
	}
	if names, err := ctl.Models(ctx); err != nil || !slices.Equal(names, []string{"m"}) {
		t.Errorf("models: %v, %v", names, err)
	}
	over := full()
	over.Variants[identity(200, 1).Variant()] = over.Variants[identity(1, 1).Variant()]
	if _, err := ctl.Swap(ctx, Stored{}, over); !errors.Is(err, ErrRecord) {
		t.Errorf("writing an invalid record: %v", err)
	}
}

func TestHeartbeatLimits(t *testing.T) {
	srv := newServer(t)
	ctl := srv.control(t)
	good := Heartbeat{Incarnation: "a", Model: "m", State: Leased, Info: Info{Stats: map[string]float64{"hit_ratio": 0.5}}}
	if err := ctl.Beat(t.Context(), good, time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Heartbeat){
		"incarnation": func(h *Heartbeat) { h.Incarnation = "a:b" },
		"model":       func(h *Heartbeat) { h.Model = "" },
		"address":     func(h *Heartbeat) { h.Address = strings.Repeat("x", 300) },
		"loadable":    func(h *Heartbeat) { h.Loadable = make([]string, 33) },
		"generation":  func(h *Heartbeat) { h.Gen = MaxNumber },
		"state":       func(h *Heartbeat) { h.State = "fine" },
	} {
		h := good
		edit(&h)
		if err := ctl.Beat(t.Context(), h, time.Now()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Hostile heartbeats of others.
	for n, v := range []string{"{", strings.Repeat("x", 1<<20), `{"incarnation":"b0","model":"m","state":"leased"}`, `{"gen":1e99}`, ""} {
		name := fmt.Sprintf("b%d", n+1)
		if err := srv.Set(beatPrefix+name, v); err != nil {
			t.Fatal(err)
		}
		if _, err := srv.ZAdd(workersKey, 1, name); err != nil {
			t.Fatal(err)
		}
	}
	hs, err := ctl.Workers(context.WithoutCancel(t.Context()))
	if err != nil || len(hs) != 1 || hs[0].Incarnation != "a" {
		t.Errorf("got %+v, %v; want the good one", hs, err)
	}
}

func TestForgottenModelsAreGone(t *testing.T) {
	ctl := newServer(t).control(t)
	c := newCoordinator(t, Options{Control: ctl})
	must2(t)(c.Register(t.Context(), "m", identity(1, 1), "v1"))
	must2(t)(c.Register(t.Context(), "other", identity(1, 1), "v1"))
	if err := ctl.Forget(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if _, err := ctl.Load(t.Context(), "m"); !errors.Is(err, ErrNoModel) {
		t.Errorf("load: %v, want ErrNoModel", err)
	}
	if names, err := ctl.Models(t.Context()); err != nil || !slices.Equal(names, []string{"other"}) {
		t.Errorf("models: %v, %v", names, err)
	}
	if err := ctl.Forget(t.Context(), "no name"); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
}

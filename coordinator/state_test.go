package coordinator

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/block"
)

func fileOf(t *testing.T, path string) map[string]Stored {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	records, err := decodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// aftermath restarts every coordinator after Redis was treated as lose says, and returns the record that stands there in the end.
func aftermath(t *testing.T, ctl *Control, lease time.Duration, lose func(backup string)) (before, after Record) {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *Coordinator {
		c := newCoordinator(t, Options{Control: ctl, Owner: name, StateFile: filepath.Join(dir, name), Reconcile: lease / 20, Leadership: lease})
		c.Start()
		return c
	}
	a, b := open("a"), open("b")
	ctx := t.Context()
	must2(t)(a.Register(ctx, "m", identity(1, 1), "v1"))
	must2(t)(a.Register(ctx, "m", identity(2, 1), "v2"))
	eventually(t, "the other one has seen it", func() bool { r := b.remembered("m"); return r != nil && r.Gen == 2 })
	old, err := ctl.Load(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	must2(t)(a.Activate(ctx, "m", "v2", false)) // revokes v1
	must2(t)(b.PurgeTenant(ctx, "m", block.Namespace(nil, "acme")))
	for _, c := range []*Coordinator{a, b} {
		eventually(t, "both remember", func() bool { return c.remembered("m").Gen == 4 })
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	was, err := ctl.Load(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	lose(string(old.raw))
	a, b = open("a"), open("b")
	defer a.Close()
	defer b.Close()
	var now Stored
	eventually(t, "the record is written again", func() bool { now, err = ctl.Load(ctx, "m"); return err == nil && now.Gen > was.Gen })
	time.Sleep(lease / 2)
	if now, err = ctl.Load(ctx, "m"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Coordinator{a, b} {
		eventually(t, "both agree", func() bool { return c.remembered("m").Sum() == now.Sum() })
	}
	return was.Record, now.Record
}

func aftermathTests(t *testing.T, control func(*testing.T) *Control, lease time.Duration, bubble func(*testing.T, func(*testing.T))) {
	v1, v2, ns := identity(1, 1).Variant(), identity(2, 1).Variant(), block.Namespace(nil, "acme")
	check := func(t *testing.T, was, now Record) {
		t.Helper()
		if now.Variants[v1].State != Revoked || now.Variants[v2].State != Active {
			t.Errorf("states after the loss: %s", brief(now))
		}
		if now.Tenants[ns].Cut != was.Tenants[ns].Cut {
			t.Errorf("the tenant's purge is %v, was %v", now.Tenants[ns], was.Tenants[ns])
		}
		if now.LastEpoch < was.LastEpoch {
			t.Errorf("last epoch went from %d to %d", was.LastEpoch, now.LastEpoch)
		}
	}
	t.Run("flushed", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			ctl := control(t)
			was, now := aftermath(t, ctl, lease, func(string) {
				if err := ctl.rdb.FlushAll(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
			})
			check(t, was, now)
			if now.Variants[v2].Epoch != was.Variants[v2].Epoch {
				t.Error("a flush costs an epoch although nothing was in doubt")
			}
		})
	})
	t.Run("older backup", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			ctl := control(t)
			was, now := aftermath(t, ctl, lease, func(backup string) {
				if err := ctl.rdb.Set(t.Context(), recordPrefix+"m", backup, 0).Err(); err != nil {
					t.Fatal(err)
				}
			})
			check(t, was, now)
		})
	})
}

// TestEverythingRestarts: no process remembers anything, Redis went back, the files know.
func TestEverythingRestarts(t *testing.T) {
	var srv *server
	aftermathTests(t, func(t *testing.T) *Control { srv = newServer(t); return srv.control(t) }, DefaultLeadership,
		func(t *testing.T, fn func(*testing.T)) { synctest.Test(t, fn) })
}

// TestIntentionSurvivesACrash: the coordinator dies after its file was written and before Redis was.
func TestIntentionSurvivesACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		path := filepath.Join(t.TempDir(), "state")
		c := newCoordinator(t, Options{Control: srv.control(t), StateFile: path})
		must2(t)(c.Register(t.Context(), "m", identity(1, 1), "v1"))
		r := must(t)(c.remembered("m").Revoke("v1", Stamp{Now: time.Now(), Act: Act{1}}))
		if err := c.state.intend("m", stored(t, r).raw); err != nil {
			t.Fatal(err)
		}
		again := newCoordinator(t, Options{Control: srv.control(t), StateFile: path})
		again.Start()
		defer again.Close()
		time.Sleep(3 * time.Second)
		st, err := again.Status(t.Context(), "m")
		if err != nil || st.Versions[0].State != Revoked {
			t.Errorf("%+v, %v", st.Versions, err)
		}
	})
}

// TestIntentionIsTakenBack: Redis said no, or was not there.
func TestIntentionIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		path := filepath.Join(t.TempDir(), "state")
		c := newCoordinator(t, Options{Control: srv.control(t), StateFile: path})
		must2(t)(c.Register(t.Context(), "m", identity(1, 1), "v1"))
		confirmed := fileOf(t, path)["m"]
		r := must(t)(c.remembered("m").Revoke("v1", Stamp{Now: time.Now(), Act: Act{1}}))
		if _, err := c.write(t.Context(), Stored{}, r, writing{}); !errors.Is(err, ErrConflict) {
			t.Fatalf("%v, want a conflict", err)
		}
		if got := fileOf(t, path)["m"]; got.Sum() != confirmed.Sum() {
			t.Errorf("after a conflict the file has generation %d", got.Gen)
		}
		srv.cut(true)
		if _, err := c.Revoke(t.Context(), "m", "v1"); err == nil {
			t.Fatal("revoked without Redis")
		}
		srv.cut(false)
		c.campaign(t.Context())
		c.reconcileAll(t.Context())
		if got := fileOf(t, path)["m"]; got.Sum() != confirmed.Sum() {
			t.Errorf("after an outage the file has generation %d", got.Gen)
		}
		if st, err := c.Status(t.Context(), "m"); err != nil || st.Versions[0].State != Active {
			t.Errorf("%+v, %v", st.Versions, err)
		}
	})
}

// TestFollowersFilesAreFresh: a coordinator that did not write keeps what the other one wrote.
func TestFollowersFilesAreFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		path := filepath.Join(t.TempDir(), "state")
		writer := newCoordinator(t, Options{Control: srv.control(t)})
		writer.Start()
		defer writer.Close()
		other := newCoordinator(t, Options{Control: srv.control(t), StateFile: path})
		other.Start()
		defer other.Close()
		for _, n := range []byte{1, 2, 3} {
			res := must2(t)(writer.Register(t.Context(), "m", identity(n, 1), ""))
			time.Sleep(3 * time.Second)
			if got := fileOf(t, path)["m"].Gen; got != res.Gen {
				t.Errorf("generation %d in the file, %d in Redis", got, res.Gen)
			}
		}
	})
}

func TestStateFileIsChecked(t *testing.T) {
	r := stored(t, must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, Stamp{Now: start, Act: Act{1}})))
	good := `{"v":1,"models":{"m":` + string(r.raw) + `}}`
	if records, err := decodeState([]byte(strings.Replace(good, `"gen":1`, ` "gen" : 1`, 1))); err != nil || records["m"].Sum() != r.Sum() {
		t.Fatalf("%v, %v", slices.Collect(maps.Keys(records)), err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty":         "",
		"cut off":       good[:len(good)-3],
		"other format":  strings.Replace(good, `{"v":1`, `{"v":2`, 1),
		"other model":   strings.Replace(good, `"m":`, `"n":`, 1),
		"more after it": good + "{}",
		"bad record":    strings.Replace(good, `"gen":1`, `"gen":0`, 1),
		"unknown field": strings.Replace(good, `{"v":1`, `{"x":1,"v":1`, 1),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Options{Control: &Control{}, StateFile: path}); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Options{Control: &Control{}, StateFile: filepath.Join(dir, "no", "such")}); !errors.Is(err, ErrState) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}

// TestNothingIsWrittenWithoutTheFile: a full or vanished disk refuses changes instead of making ones that would not survive.
func TestNothingIsWrittenWithoutTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		dir := filepath.Join(t.TempDir(), "d")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		c := newCoordinator(t, Options{Control: srv.control(t), StateFile: filepath.Join(dir, "state")})
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Register(t.Context(), "m", identity(1, 1), ""); !errors.Is(err, ErrState) {
			t.Errorf("%v, want ErrState", err)
		}
		if srv.Exists(recordPrefix + "m") {
			t.Error("the record was written")
		}
		if entries, _ := os.ReadDir(filepath.Dir(dir)); len(entries) != 0 {
			t.Errorf("left behind: %v", entries)
		}
	})
}

func FuzzState(f *testing.F) {
	r := must(f)(NewRecord("m").Register(identity(1, 1), "v1", true, Stamp{Now: start, Act: Act{1}}))
	f.Add([]byte(`{"v":1,"models":{"m":` + string(stored(f, r).raw) + `}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := decodeState(b)
		if err != nil {
			return
		}
		for name, r := range records {
			if again, err := DecodeRecord(name, r.raw); err != nil || again.Gen != r.Gen {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

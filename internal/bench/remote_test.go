package bench_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/internal/bench"
)

func small() bench.RemoteOptions {
	return bench.RemoteOptions{ValueBytes: []int{64 << 10}, Connections: []int{1, 2}, DataBytes: 1 << 20, Duration: short, Seed: "test"}
}

func TestRemoteMeasuresAndCleansUp(t *testing.T) {
	m := miniredis.RunT(t)
	if err := m.Set("theirs", "kept"); err != nil {
		t.Fatal(err)
	}
	o := small()
	steps := 0
	o.Step = func() { steps++ }
	r, err := bench.Remote(t.Context(), "redis://"+m.Addr(), o)
	if err != nil {
		t.Fatal(err)
	}
	if steps != o.Slices() {
		t.Errorf("%d steps, announced were %d", steps, o.Slices())
	}
	var ops []string
	for _, x := range r.Remote {
		ops = append(ops, x.Op)
		if x.GBps <= 0 || x.RawGBps <= 0 || x.Ratio <= 0 || x.ValueBytes != 64<<10 || x.Parts != 1 {
			t.Errorf("row %+v", x)
		}
	}
	if got, want := strings.Join(ops, " "), "get get_verified put put_sealed get get_verified put put_sealed"; got != want {
		t.Errorf("operations %q, want %q", got, want)
	}
	if r.Probe.Blocks != 2048 || r.Probe.Ms <= 0 || r.Probe.RawMs <= 0 {
		t.Errorf("probe %+v", r.Probe)
	}
	if keys := m.Keys(); len(keys) != 1 || keys[0] != "theirs" {
		t.Errorf("%d keys are left, want the one that was there before: %.200v", len(keys), keys)
	}
}

func TestRemoteStoresLargeBlocksInParts(t *testing.T) {
	m := miniredis.RunT(t)
	o := small()
	o.ValueBytes, o.Connections, o.DataBytes = []int{6 << 20}, []int{2}, 12<<20
	r, err := bench.Remote(t.Context(), "redis://"+m.Addr(), o)
	if err != nil || len(r.Remote) != 4 || r.Remote[0].Parts != 4 {
		t.Errorf("Remote = %+v, %v; want 4 rows of 4 parts", r.Remote, err)
	}
}

func TestRemoteCleansUpWhenInterrupted(t *testing.T) {
	m := miniredis.RunT(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := small()
	o.Duration = time.Minute
	keysThen, ttl := 0, time.Duration(0)
	o.Step = func() {
		if keys := m.Keys(); keysThen == 0 && len(keys) > 0 {
			keysThen, ttl = len(keys), m.TTL(keys[0])
		}
		cancel()
	}
	if _, err := bench.Remote(ctx, "redis://"+m.Addr(), o); err == nil {
		t.Error("no error after the context ended")
	}
	if keysThen == 0 || ttl <= 0 {
		t.Errorf("%d keys with a TTL of %v during the measurement: want some, and that they expire", keysThen, ttl)
	}
	if keys := m.Keys(); len(keys) != 0 {
		t.Errorf("%d keys are left", len(keys))
	}
}

func TestRemoteRefuses(t *testing.T) {
	m := miniredis.RunT(t)
	locked := miniredis.RunT(t)
	locked.RequireAuth("secret")
	odd := small()
	odd.ValueBytes = []int{1000}
	for name, c := range map[string]struct {
		url  string
		o    bench.RemoteOptions
		is   error
		want string
	}{
		"cluster":        {"redis+cluster://" + m.Addr(), small(), bench.ErrOneServer, "one node"},
		"sentinel":       {"redis+sentinel://" + m.Addr() + "/primary", small(), bench.ErrOneServer, "one node"},
		"odd value":      {"redis://" + m.Addr(), odd, bench.ErrValueBytes, "multiple of"},
		"no URL":         {"localhost", small(), nil, "valid forms"},
		"server down":    {"redis://127.0.0.1:1", small(), nil, "refused"},
		"no password":    {"redis://" + locked.Addr(), small(), nil, "NOAUTH"},
		"wrong password": {"redis://:hunter2@" + locked.Addr(), small(), nil, "WRONGPASS"},
	} {
		_, err := bench.Remote(t.Context(), c.url, c.o)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v; want %v, mentioning %q", name, err, c.is, c.want)
		}
	}
	if _, err := bench.Remote(t.Context(), "redis://:secret@"+locked.Addr(), small()); err != nil {
		t.Errorf("with the password: %v", err)
	}
}

func TestRoomLeavesOthersValuesAlone(t *testing.T) {
	for name, c := range map[string]struct {
		max, used int64
		fits      bool
	}{
		"unbounded":       {0, 1 << 30, true},
		"unknown":         {-1, 0, true},
		"enough":          {1 << 30, 100 << 20, true},
		"full of others'": {1 << 30, 900 << 20, false},
		"just the bytes":  {300 << 20, 1 << 20, false},
	} {
		s := bench.Server{MaxMemory: c.max, Used: c.used}
		if err := s.Room(256 << 20); (err == nil) != c.fits || err != nil && !errors.Is(err, bench.ErrNoRoom) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
)

// crew carries out jobs of numbered tasks, a millisecond each. The real one, with workers, is in integration.
type crew struct {
	mu       sync.Mutex
	did      []int
	works    []WarmWork
	released []string
	fail     error
}

func (*crew) Check(_ JobSpec, manifest string) error {
	if strings.HasPrefix(manifest, "broken") {
		return errors.New("manifest: line 1: broken line: it is not JSON")
	}
	return nil
}

func (c *crew) Warm(ctx context.Context, w WarmWork) error {
	done, err := w.Begin("plan")
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.works = append(c.works, w)
	fail := c.fail
	c.mu.Unlock()
	if fail != nil {
		return fail
	}
	for i := range len(w.Manifest) {
		if done(i) {
			continue
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		c.mu.Lock()
		c.did = append(c.did, i)
		c.mu.Unlock()
		if err := w.Mark(i); err != nil {
			return err
		}
		w.Report(json.RawMessage(fmt.Sprintf(`{"done":%d}`, i+1)))
	}
	return nil
}

func (c *crew) Release(_ context.Context, _ []string, _ block.Variant, manifest string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.released = append(c.released, manifest)
	return nil
}

func (c *crew) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.did)
}

// staffed is a model with an active version and a worker that serves it.
func staffed(t *testing.T, ctl *Control, c *Coordinator) block.Identity {
	t.Helper()
	id := identity(1, 1)
	res, err := c.Register(t.Context(), "m", id, "v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := ctl.Beat(t.Context(), Heartbeat{Incarnation: "w", Model: "m", Gen: res.Gen, State: Leased,
		Info: Info{Address: "127.0.0.1:1", Variant: id.Variant()}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestWarmupJobs(t *testing.T) {
	srv := newServer(t)
	ctl := srv.control(t)
	hands := &crew{}
	options := Options{Control: ctl, Reconcile: 5 * time.Millisecond, Lease: 2 * time.Second, Warmer: hands}
	first := newCoordinator(t, options)
	first.Start()
	defer first.Close()
	id := staffed(t, ctl, first)
	const tasks = 1000
	job, err := first.AddWarmup(t.Context(), WarmupRequest{JobSpec: JobSpec{Model: "m"}, Manifest: strings.Repeat("x", tasks)})
	if err != nil || job.Variant != id.Variant() {
		t.Fatalf("%+v, %v", job, err)
	}
	state := func(c *Coordinator) JobState {
		j, err := c.Warmup(t.Context(), job.ID)
		if err != nil {
			t.Fatal(err)
		}
		return j.State
	}
	eventually(t, "work", func() bool { return hands.count() > 20 })
	if _, err := first.SteerWarmup(t.Context(), job.ID, JobPaused); err != nil {
		t.Fatal(err)
	}
	eventually(t, "paused", func() bool { return state(first) == JobPaused })
	at := hands.count()
	time.Sleep(20 * time.Millisecond)
	if now := hands.count(); now != at || now == tasks {
		t.Errorf("%d tasks done while paused, %d of %d before", now-at, at, tasks)
	}
	if _, err := first.SteerWarmup(t.Context(), job.ID, JobRunning); err != nil {
		t.Fatal(err)
	}
	eventually(t, "going on", func() bool { return hands.count() > at })

	// The leader ends in the middle of it. Another coordinator goes on, and does nothing twice but what was under way.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := newCoordinator(t, options)
	second.Start()
	defer second.Close()
	eventually(t, "done", func() bool { return state(second) == JobDone })
	if n := hands.count(); n < tasks || n > tasks+3 {
		t.Errorf("%d tasks were done for a job of %d, interrupted twice", n, tasks)
	}
	j, err := second.Warmup(t.Context(), job.ID)
	if err != nil || string(j.Report) != fmt.Sprintf(`{"done":%d}`, tasks) || j.Ended == 0 || j.Via != second.opt.Owner {
		t.Errorf("%+v, %v", j, err)
	}
	if _, err := second.SteerWarmup(t.Context(), job.ID, JobRunning); !errors.Is(err, ErrInvalid) {
		t.Errorf("a job that is done can be resumed: %v", err)
	}
	if again, err := second.SteerWarmup(t.Context(), job.ID, JobCancelled); err != nil || !reflect.DeepEqual(again, j) {
		t.Errorf("to cancel a job that is done: %+v, %v, want it as it was: %+v", again, err, j)
	}
	if _, err := second.AddWarmup(t.Context(), WarmupRequest{JobSpec: JobSpec{Model: "m"}, Manifest: "broken"}); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a manifest that cannot be used: %v", err)
	}
	if jobs, err := second.Warmups(t.Context()); err != nil || len(jobs.Warmups) != 1 {
		t.Errorf("a manifest that was refused has left a job: %+v, %v", jobs, err)
	}
	// What the job needed goes after the word that it is done: the other way round, a crash in between would lose the job.
	eventually(t, "nothing left behind", func() bool {
		keys, err := ctl.rdb.Keys(t.Context(), jobPrefix+"*").Result()
		return err == nil && len(keys) == 0
	})

	hands.mu.Lock()
	hands.fail = errors.New("the tier is full")
	hands.mu.Unlock()
	bad, err := second.AddWarmup(t.Context(), WarmupRequest{JobSpec: JobSpec{Model: "m"}, Manifest: "x"})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "failed", func() bool {
		j, err := second.Warmup(t.Context(), bad.ID)
		return err == nil && j.State == JobFailed && strings.Contains(j.Error, "full")
	})
	// A job for a variant that nobody serves any more fails; it would wait for ever.
	if _, err := second.Register(t.Context(), "m", identity(2, 1), "v2"); err != nil {
		t.Fatal(err)
	}
	lost, err := second.AddWarmup(t.Context(), WarmupRequest{JobSpec: JobSpec{Model: "m"}, Manifest: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := ctl.Leave(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Activate(t.Context(), "m", "v2", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "failed after the revocation", func() bool {
		j, err := second.Warmup(t.Context(), lost.ID)
		return err == nil && j.State.Ended()
	})
}

func TestPinsAreLookedAfter(t *testing.T) {
	srv := newServer(t)
	ctl := srv.control(t)
	hands := &crew{}
	c := newCoordinator(t, Options{Control: ctl, Reconcile: 5 * time.Millisecond, Warmer: hands, PinQuota: 100, PinRefresh: 20 * time.Millisecond})
	c.Start()
	defer c.Close()
	staffed(t, ctl, c)
	add := func(q PinRequest) error {
		_, err := c.AddPin(t.Context(), "m", q)
		return err
	}
	if err := add(PinRequest{ID: "a", Prompt: strings.Repeat("x", 60)}); err != nil {
		t.Fatal(err)
	}
	if err := add(PinRequest{ID: "b", Prompt: strings.Repeat("y", 60)}); !errors.Is(err, ErrQuota) {
		t.Errorf("120 bytes of 100: %v", err)
	}
	if err := add(PinRequest{ID: "a", Prompt: strings.Repeat("x", 90)}); err != nil {
		t.Errorf("a pin cannot be replaced: %v", err)
	}
	if err := add(PinRequest{Tokens: []int32{1, 2, 3}, CacheSalt: "acme"}); err != nil {
		t.Errorf("another tenant has a quota of its own: %v", err)
	}
	rounds := func() (n int, last string) {
		hands.mu.Lock()
		defer hands.mu.Unlock()
		if n = len(hands.works); n > 0 {
			last = hands.works[n-1].Manifest
		}
		return n, last
	}
	eventually(t, "both pins", func() bool {
		_, m := rounds()
		return strings.Count(m, `"pin":true`) == 2 && strings.Contains(m, "acme")
	})
	n, _ := rounds()
	eventually(t, "again", func() bool { now, _ := rounds(); return now > n+1 })
	if _, err := c.RemovePin(t.Context(), "m", "a"); err != nil {
		t.Fatal(err)
	}
	hands.mu.Lock()
	if len(hands.released) != 1 || !strings.Contains(hands.released[0], "xxx") {
		t.Errorf("released %q", hands.released)
	}
	hands.mu.Unlock()
	eventually(t, "one pin", func() bool { _, m := rounds(); return strings.Count(m, `"pin":true`) == 1 })
}

package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
)

const (
	v1     = "shakespeare-3m-v1"
	v2     = "shakespeare-3m-v2"
	record = "kvt1:{ctl}:model:shakespeare"
	lease  = 5 * time.Second
)

// strictFleet is a fleet whose workers use nothing without a lease.
func strictFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{redis: testredis.Start(t)}
	f.coordinator = start(t, "coordinator", "--redis", f.redis.URL())
	for i := range f.workers {
		f.workers[i] = f.worker(t, "--on-expiry", "strict")
	}
	return f
}

func (f *fleet) worker(t *testing.T, more ...string) *process {
	t.Helper()
	w := start(t, append([]string{"worker", "--redis", f.redis.URL(), "--coordinator", f.coordinator.url}, more...)...)
	w.await("part of the fleet", 20*time.Second, func() bool { return w.status() == "ready" })
	return w
}

func (f *fleet) client(t *testing.T) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: f.redis.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

func (f *fleet) model(t *testing.T, args ...string) string {
	t.Helper()
	return kvtier(t, append(append([]string{"model"}, args...), "--coordinator", f.coordinator.url)...)
}

// cold is what the resident weights of each label answer without any cache, learnt from workers of their own.
func cold(t *testing.T, prompts []string) map[string][][]int32 {
	t.Helper()
	answers := map[string][][]int32{}
	w := start(t, "worker") // no Redis, and every prompt is new to it
	for _, name := range []string{v2, v1} {
		kvtier(t, "model", "load", name, "--worker", w.url)
		for _, p := range prompts {
			a := w.complete(p)
			if a.KVTier.Label != name || a.Usage.Details.Cached != 0 && !strings.HasPrefix(p, "shared") {
				t.Fatalf("cold answer by %s with %d cached tokens", a.KVTier.Label, a.Usage.Details.Cached)
			}
			answers[name] = append(answers[name], a.Choices[0].TokenIDs)
		}
	}
	return answers
}

func prompts(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("ACT %d, SCENE %d\n%s", i, i*7, speech)
	}
	return all
}

// load sends requests to both workers until stop is called, which returns how many answers there were and how many were wrong.
func (f *fleet) load(ps []string, want map[string][][]int32) (stop func() (answers, wrong int64)) {
	var n, bad atomic.Int64
	var wg sync.WaitGroup
	done := make(chan struct{})
	for i, w := range f.workers {
		wg.Go(func() {
			for k := i; ; k++ {
				select {
				case <-done:
					return
				default:
				}
				p := k % len(ps)
				a, err := w.tryComplete(ps[p])
				if err != nil {
					continue // killed or stopped: that is what the test does to it
				}
				n.Add(1)
				if !slices.Equal(a.Choices[0].TokenIDs, want[a.KVTier.Label][p]) {
					bad.Add(1)
				}
			}
		})
	}
	return func() (int64, int64) {
		close(done)
		wg.Wait()
		return n.Load(), bad.Load()
	}
}

// Fault 10, race 20: FLUSHALL again and again under load. Every answer is right, the record comes back, and so do hits.
func TestFlushUnderLoad(t *testing.T) {
	ps := prompts(6)
	want := cold(t, ps)
	f := startFleet(t)
	stop := f.load(ps, want)
	for range 5 {
		time.Sleep(400 * time.Millisecond)
		f.redis.Flush()
	}
	began := time.Now()
	c := f.client(t)
	f.coordinator.await("the author of the record again", 10*time.Second, func() bool { return c.Exists(context.Background(), record).Val() == 1 })
	back := time.Since(began)
	answers, wrong := stop()
	t.Logf("%d answers over 5 flushes, %d wrong; record back after %v", answers, wrong, back.Round(time.Millisecond))
	if wrong != 0 || answers < 20 {
		t.Errorf("%d of %d answers are wrong", wrong, answers)
	}
	for _, w := range f.workers {
		w.await("leased", 10*time.Second, func() bool { return w.status() == "ready" })
	}
	f.remote(t, 1, "ACT IX\n"+long)
}

// Fault 17: workers are killed in the middle of storing and come back. Nobody ever reads half a value.
func TestKilledWorkersLeaveNothingHalf(t *testing.T) {
	ps := prompts(6)
	want := cold(t, ps)
	f := startFleet(t)
	for round := range 6 {
		stop := f.load(ps, want)
		time.Sleep(time.Duration(60+35*round) * time.Millisecond)
		f.workers[0].signal(syscall.SIGKILL)
		<-f.workers[0].done
		_, wrong := stop()
		if wrong != 0 {
			t.Fatalf("round %d: %d wrong answers", round, wrong)
		}
		f.workers[0] = f.worker(t)
		for p, prompt := range ps { // from what the dead one has left behind
			if a := f.workers[0].complete(prompt); !slices.Equal(a.Choices[0].TokenIDs, want[a.KVTier.Label][p]) {
				t.Errorf("round %d: prompt %d is answered wrong, %d of its tokens cached", round, p, a.Usage.Details.Cached)
			}
		}
	}
}

// Fault 16, race 15: a strict worker is stopped for longer than its lease, everything is purged meanwhile, and it goes on in the
// middle of whatever it did.
func TestStoppedWorkerUsesNothingThatWasPurged(t *testing.T) {
	f := strictFleet(t)
	w := f.workers[0]
	first := w.complete(speech)
	w.await("caching", 10*time.Second, func() bool { return w.complete(speech).Usage.Details.Hot > 0 })
	w.signal(syscall.SIGSTOP)
	f.model(t, "purge", "shakespeare")
	time.Sleep(lease + 500*time.Millisecond)
	w.signal(syscall.SIGCONT)
	a := w.complete(speech)
	if a.Usage.Details.Hot != 0 {
		t.Errorf("%d tokens of the purged epoch from its own memory", a.Usage.Details.Hot)
	}
	if !slices.Equal(a.Choices[0].TokenIDs, first.Choices[0].TokenIDs) {
		t.Error("other output")
	}
	w.await("leased again", 10*time.Second, func() bool { return w.status() == "ready" })
	w.complete(speech)
	w.await("caching again", 10*time.Second, func() bool { return w.complete(speech).Usage.Details.Hot > 0 })
	if out := f.model(t, "status", "shakespeare"); !strings.Contains(out, "is complete") {
		t.Errorf("the purge is not complete:\n%s", out)
	}
}

// Fault 13, race 21: an old backup of the control record comes back, in which the revoked weights are active. Workers refuse it, the
// coordinator writes it again, and nothing of the revoked weights is served.
func TestRestoredBackupServesNothingRevoked(t *testing.T) {
	ps := prompts(3)
	want := cold(t, ps)
	f := strictFleet(t)
	c := f.client(t)
	resident := f.workers[0].complete(ps[0]).KVTier.Label
	next := map[string]string{v1: v2, v2: v1}[resident]
	for _, w := range f.workers {
		w.complete(ps[1])
	}
	backup, err := c.Dump(t.Context(), record).Result()
	if err != nil {
		t.Fatal(err)
	}
	f.model(t, "activate", "shakespeare", next)
	for _, w := range f.workers {
		w.await("on "+next, 10*time.Second, func() bool { return w.complete(ps[2]).KVTier.Label == next })
	}
	for range 3 {
		if err := c.RestoreReplace(t.Context(), record, 0, backup).Err(); err != nil {
			t.Fatal(err)
		}
		for until := time.Now().Add(700 * time.Millisecond); time.Now().Before(until); {
			for _, w := range f.workers {
				for p, prompt := range ps {
					a := w.complete(prompt)
					if a.KVTier.Label != next || !slices.Equal(a.Choices[0].TokenIDs, want[next][p]) {
						t.Fatalf("answered by %s, %d tokens cached", a.KVTier.Label, a.Usage.Details.Cached)
					}
				}
			}
		}
	}
	for _, w := range f.workers {
		w.await("leased", 10*time.Second, func() bool { return w.status() == "ready" })
	}
}

// Fault 14, race 11: the subscriptions are killed at the moment of the purge. The poll after the new subscription, or the next one, brings it.
func TestPubSubKilledInTheWindow(t *testing.T) {
	f := startFleet(t)
	c := f.client(t)
	var slowest time.Duration
	for round := range 4 {
		prompt := fmt.Sprintf("ACT %d\n%s", round, speech)
		for _, w := range f.workers {
			w.await("caching", 10*time.Second, func() bool { return w.complete(prompt).Usage.Details.Hot > 0 })
		}
		if err := c.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err(); err != nil {
			t.Fatal(err)
		}
		f.model(t, "purge", "shakespeare")
		began := time.Now()
		f.coordinator.await("complete", 4*time.Second, func() bool {
			return strings.Contains(f.model(t, "status", "shakespeare"), "is complete")
		})
		slowest = max(slowest, time.Since(began))
		for i, w := range f.workers {
			if a := w.complete(prompt); a.Usage.Details.Hot != 0 && i == 0 {
				t.Errorf("round %d: %d purged tokens are still hot", round, a.Usage.Details.Hot)
			}
		}
	}
	t.Logf("complete after at most %v without hints", slowest.Round(time.Millisecond))
}

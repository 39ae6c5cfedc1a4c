package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/internal/testredis"
)

const speech = "PETRUCHIO:\nGood morrow, Kate; for that's your name, I hear.\n\nKATHARINA:\nWell have you heard, but something hard of hearing:\n" +
	"They call me Katharina that do talk of me.\n\nPETRUCHIO:\nYou lie, in faith; for you are call'd plain Kate,\nAnd bonny Kate and sometimes Kate the curst;\n"

// long is a prompt that is worth a fetch: what is computed sooner than fetched is computed.
var long = strings.Repeat(speech, 6)

// fleet is one coordinator and two workers on a Redis of their own.
type fleet struct {
	redis       *testredis.Redis
	coordinator *process
	workers     [2]*process
}

func startFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{redis: testredis.Start(t)}
	f.coordinator = start(t, "coordinator", "--redis", f.redis.URL())
	for i := range f.workers {
		f.workers[i] = start(t, "worker", "--redis", f.redis.URL(), "--coordinator", f.coordinator.url)
		f.workers[i].await("part of the fleet", 20*time.Second, func() bool { return f.workers[i].status() == "ready" })
	}
	return f
}

// remote has worker 1 compute a prompt and the given worker answer it, until a part of it came through Redis: workers store in the background,
// and what the other one has computed itself is hot from then on, so that every try is a prompt of its own.
func (f *fleet) remote(t *testing.T, worker int, prompt string) answer {
	t.Helper()
	var a answer
	try := 0
	f.workers[worker].await("served from Redis", 20*time.Second, func() bool {
		try++
		own := strconv.Itoa(try) + " " + prompt
		f.workers[0].complete(own)
		time.Sleep(100 * time.Millisecond)
		a = f.workers[worker].complete(own)
		return a.Usage.Details.Remote > 0
	})
	return a
}

// Never wrong: a prefix computed by one process is used by another, and the output stays the same.
func TestWorkersShareThroughRedis(t *testing.T) {
	f := startFleet(t)
	first := f.workers[0].complete(long)
	if first.Usage.Details.Cached != 0 {
		t.Fatalf("%d cached tokens of a prompt that nobody has sent", first.Usage.Details.Cached)
	}
	var second answer
	f.workers[1].await("served from Redis", 10*time.Second, func() bool {
		time.Sleep(200 * time.Millisecond) // one try, when worker 1 has surely stored
		second = f.workers[1].complete(long)
		return true
	})
	if second.Usage.Details.Remote < 64 {
		t.Errorf("worker 2 took %d of %d prompt tokens from Redis", second.Usage.Details.Remote, second.Usage.PromptTokens)
	}
	if !slices.Equal(first.Choices[0].TokenIDs, second.Choices[0].TokenIDs) {
		t.Errorf("output differs: %v and %v", first.Choices[0].TokenIDs, second.Choices[0].TokenIDs)
	}
	for i, w := range f.workers {
		if code := w.terminate(); code != 0 {
			t.Errorf("worker %d ended with exit code %d on SIGTERM\n%s", i+1, code, w.log.String())
		}
	}
	if code := f.coordinator.terminate(); code != 0 {
		t.Errorf("coordinator ended with exit code %d on SIGTERM", code)
	}
}

// Never stale: after an activation no worker uses what the old weights computed, not even after going back.
func TestActivationInvalidatesEverywhere(t *testing.T) {
	f := startFleet(t)
	prompts := []string{speech, "ACT II\n" + speech} // one per worker, without a common prefix
	var label string
	prime := func() {
		for i, w := range f.workers {
			label = w.complete(prompts[i]).KVTier.Label
			w.await("caching", 10*time.Second, func() bool { return w.complete(prompts[i]).Usage.Details.Hot > 0 })
		}
	}
	prime()
	first := label
	for _, next := range []string{map[string]string{"shakespeare-3m-v1": "shakespeare-3m-v2", "shakespeare-3m-v2": "shakespeare-3m-v1"}[first], first} {
		kvtier(t, "model", "activate", "shakespeare", next, "--coordinator", f.coordinator.url)
		for i, w := range f.workers {
			w.await("on "+next, 10*time.Second, func() bool {
				return w.complete("x").KVTier.Label == next && w.status() == "ready"
			})
			if a := w.complete(prompts[i]); a.Usage.Details.Cached != 0 {
				t.Errorf("worker %d, first request on %s: %d cached tokens", i+1, next, a.Usage.Details.Cached)
			}
		}
		prime()
	}
	out := kvtier(t, "model", "status", "shakespeare", "--coordinator", f.coordinator.url)
	if !strings.Contains(out, "is complete") {
		t.Errorf("status does not say that the invalidation is complete:\n%s", out)
	}
}

// Never blocks: without Redis, and without a coordinator, requests are answered as before; when they are back, so are hits.
func TestRedisAndCoordinatorMayGoAway(t *testing.T) {
	f := startFleet(t)
	want := f.workers[0].complete(speech).Choices[0].TokenIDs
	f.redis.Stop()
	for range 5 {
		for i, w := range f.workers {
			if a := w.complete(speech); !slices.Equal(a.Choices[0].TokenIDs, want) {
				t.Errorf("worker %d without Redis: other output", i+1)
			}
		}
	}
	f.workers[1].await("degraded", 10*time.Second, func() bool { return f.workers[1].status() == "degraded" })
	f.redis.Start() // empty: the coordinator has to write the control record again
	for _, w := range f.workers {
		w.await("recovered", 40*time.Second, func() bool {
			w.complete(speech[:40] + time.Now().String()) // traffic heals the breaker
			return w.status() == "ready"
		})
	}
	f.remote(t, 1, "ACT II\n"+long)

	if code := f.coordinator.terminate(); code != 0 {
		t.Errorf("coordinator: exit code %d", code)
	}
	f.remote(t, 1, "ACT III\n"+long)
}

// Never slower: what a warm-up computed once, every worker has.
func TestWarmupIsSharedAndIdempotent(t *testing.T) {
	f := startFleet(t)
	file := filepath.Join(t.TempDir(), "prompts.txt")
	line := strings.ReplaceAll(speech, "\n", " ")
	if err := os.WriteFile(file, []byte(line+"\n"+line+"Kate!\nA prompt of another kind, which is long enough for a block or two of its own, my lord.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"warmup", file, "--worker", f.workers[0].url, "--worker", f.workers[1].url}
	out := kvtier(t, args...)
	if !strings.Contains(out, "warmed 3 of 3 prompts") {
		t.Errorf("warm-up said %s", out)
	}
	time.Sleep(300 * time.Millisecond)
	for i, w := range f.workers {
		if a := w.complete(line); a.Usage.Details.Cached < 64 {
			t.Errorf("worker %d: %d cached tokens of a warmed prompt", i+1, a.Usage.Details.Cached)
		}
	}
}

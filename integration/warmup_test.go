package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
)

// warmed is the part of a warm-up's report that the tests look at.
type warmed struct {
	Items, Done, Failed, Retries int64
	Unique                       int64 `json:"unique_blocks"`
	Computed                     int64 `json:"computed_tokens"`
	Skipped                      int64 `json:"skipped_tokens"`
	Stored                       int64 `json:"bytes_stored"`
	Workers                      []struct {
		Name     string
		Computed int64 `json:"computed_tokens"`
	}
}

// manifest writes prompts behind a few prefaces, as templates, and returns them as well.
func manifest(t *testing.T, n int) (path string, prompts []string) {
	t.Helper()
	words := strings.Fields(strings.ReplaceAll(speech, "\n", " "))
	phrase := func(seed, n int) string {
		var out []string
		for i := range n {
			seed = (seed*1103515245 + 12345) & 0x7fffffff
			out = append(out, words[(seed>>8+i)%len(words)])
		}
		return strings.Join(out, " ")
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	var prefaces []string
	for i := range 5 {
		prefaces = append(prefaces, phrase(i+1, 40))
		_ = enc.Encode(map[string]any{"define": fmt.Sprint("act", i), "text": prefaces[i] + " {{scene}}"})
	}
	for i := range n {
		scene := phrase(1000+i, 20)
		prompts = append(prompts, prefaces[i%5]+" "+scene)
		_ = enc.Encode(map[string]any{"id": fmt.Sprint(i), "template": fmt.Sprint("act", i%5), "vars": map[string]string{"scene": scene}})
	}
	path = filepath.Join(t.TempDir(), "manifest.jsonl")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, prompts
}

// warm runs a warm-up to its end.
func warm(t *testing.T, args ...string) (r warmed) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(path, append([]string{"warmup", "run", "--json"}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("warmup run %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

// cold lists the prompts of which a worker had to compute a full block because it was not there. On a busy machine Redis may be slow, and a
// worker may find that computing is faster: that is no fault of the warm-up.
func (p *process) cold(prompts []string) (cold []string) {
	p.t.Helper()
	for _, prompt := range prompts {
		a := p.complete(prompt)
		switch a.KVTier.Miss {
		case "deadline", "budget", "gate":
			continue
		}
		if missed := a.Usage.PromptTokens - a.Usage.Details.Cached; missed > 16 {
			cold = append(cold, fmt.Sprintf("%d of %d tokens (%s) of %.40q…", missed, a.Usage.PromptTokens, a.KVTier.Miss, prompt))
		}
	}
	return cold
}

// Operators warm before traffic arrives: on a fleet that loses a worker, and the job itself, in the middle; then the same for the next version,
// which takes over without a cold request.
func TestWarmupBeforeTraffic(t *testing.T) {
	f := startFleet(t)
	path, prompts := manifest(t, 200)
	journal := filepath.Join(t.TempDir(), "journal")
	common := []string{path, "--worker", f.workers[0].url, "--worker", f.workers[1].url, "--journal", journal}

	// A job slow enough to be in the middle when its second worker, and then it itself, are killed.
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	job := exec.Command(bin, append([]string{"warmup", "run", "--tokens-per-s", "1500"}, common...)...)
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	noted := func() int {
		b, _ := os.ReadFile(journal)
		return bytes.Count(b, []byte("\n")) - 1
	}
	f.workers[0].await("in the middle of the job", 60*time.Second, func() bool { return noted() >= 20 })
	_ = f.workers[1].cmd.Process.Kill()
	<-f.workers[1].done
	at := noted()
	f.workers[0].await("going on alone", 60*time.Second, func() bool { return noted() >= at+10 })
	_ = job.Process.Kill()
	_ = job.Wait()
	if n := noted(); n >= 200 {
		t.Fatalf("the job was done with %d tasks before it was killed: nothing was tested", n)
	}

	addr := strings.TrimPrefix(f.workers[1].url, "http://")
	f.workers[1] = startAt(t, addr, "worker", "--redis", f.redis.URL(), "--coordinator", f.coordinator.url)
	f.workers[1].await("part of the fleet", 20*time.Second, func() bool { return f.workers[1].status() == "ready" })
	rest := warm(t, common...)
	if rest.Items != 200 || rest.Done != 200 || rest.Failed != 0 {
		t.Errorf("resumed: %+v", rest)
	}
	if rest.Computed >= rest.Unique*16 {
		t.Errorf("the resumed job computed %d tokens, as if nothing of %d blocks had been there", rest.Computed, rest.Unique)
	}
	for i, w := range f.workers {
		if cold := w.cold(prompts); len(cold) > 0 {
			t.Errorf("worker %d is cold for %d of 200 prompts: %s", i+1, len(cold), cold[0])
		}
	}

	// Once more, without the journal: everything is looked up, nothing computed.
	again := warm(t, common[:5]...)
	if again.Done != 200 || again.Computed != 0 || again.Stored != 0 || again.Skipped == 0 {
		t.Errorf("second run: %+v", again)
	}

	// The next version is warmed beside the one that serves, and takes over.
	first := f.workers[0].complete("x").KVTier.Label
	next := map[string]string{"shakespeare-3m-v1": "shakespeare-3m-v2", "shakespeare-3m-v2": "shakespeare-3m-v1"}[first]
	own := []string{path, "--checkpoint", filepath.Join("..", "models", next+".gguf"), "--redis", f.redis.URL(), "--coordinator", f.coordinator.url}
	r := warm(t, own...)
	if r.Failed != 0 || r.Computed != r.Unique*16 {
		t.Errorf("warm-up of %s: %+v", next, r)
	}
	if a := f.workers[0].complete(prompts[0]); a.KVTier.Label != first || a.Usage.Details.Cached == 0 {
		t.Errorf("while %s was warmed, %s served with %d cached tokens", next, a.KVTier.Label, a.Usage.Details.Cached)
	}
	r = warm(t, append(own, "--activate-when-done")...)
	if r.Computed != 0 {
		t.Errorf("a second warm-up of %s computed %d tokens", next, r.Computed)
	}
	for i, w := range f.workers {
		w.await("on "+next, 20*time.Second, func() bool { return w.complete("x").KVTier.Label == next })
		if cold := w.cold(prompts); len(cold) > 0 {
			t.Errorf("after the cut-over, worker %d is cold for %d of 200 prompts: %s", i+1, len(cold), cold[0])
		}
	}
}

// A version that is revoked while it is warmed stops the job at once, with a failure, and is not activated.
func TestWarmupOfARevokedVersionStops(t *testing.T) {
	f := startFleet(t)
	path, _ := manifest(t, 200)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	first := f.workers[0].complete("x").KVTier.Label
	next := map[string]string{"shakespeare-3m-v1": "shakespeare-3m-v2", "shakespeare-3m-v2": "shakespeare-3m-v1"}[first]
	job := exec.Command(bin, "warmup", "run", path, "--checkpoint", filepath.Join("..", "models", next+".gguf"), "--redis", f.redis.URL(),
		"--coordinator", f.coordinator.url, "--activate-when-done", "--tokens-per-s", "200")
	var out bytes.Buffer
	job.Stdout, job.Stderr = &out, &out
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	f.coordinator.await("warming "+next, 30*time.Second, func() bool {
		return strings.Contains(kvtier(t, "model", "status", "shakespeare", "--coordinator", f.coordinator.url), "warming")
	})
	kvtier(t, "model", "revoke", "shakespeare", next, "--coordinator", f.coordinator.url)
	done := make(chan struct{})
	go func() {
		_ = job.Wait() // its exit code is looked at below
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second): // the whole job would take several times as long
		_ = job.Process.Kill()
		t.Fatalf("still running after the revocation\n%s", out.String())
	}
	if code := job.ProcessState.ExitCode(); code != 1 || !strings.Contains(out.String(), "revoked") && !strings.Contains(out.String(), "not granted") {
		t.Errorf("exit code %d: %s", code, out.String())
	}
	if label := f.workers[0].complete("x").KVTier.Label; label != first {
		t.Errorf("%s serves", label)
	}
}

// A job that is left to the coordinators outlives the one that leads, and pins come back when Redis has lost them.
func TestWarmupByTheCoordinators(t *testing.T) {
	f := startFleet(t)
	second := start(t, "coordinator", "--redis", f.redis.URL())
	path, prompts := manifest(t, 120)
	type jobs []struct {
		ID, State, Error string
		Report           warmed
	}
	at := func(url string, args ...string) string {
		return kvtier(t, append(append([]string{}, args...), "--coordinator", url)...)
	}
	var job struct{ ID string }
	if err := json.Unmarshal([]byte(at(f.coordinator.url, "warmup", "submit", path, "--tokens-per-s", "1200", "--json")), &job); err != nil {
		t.Fatal(err)
	}
	state := func(url string) (state string, r warmed) {
		var j jobs
		out := at(url, "warmup", "list", "--json")
		if err := json.Unmarshal([]byte(out), &j); err != nil || len(j) != 1 || j[0].ID != job.ID {
			t.Fatalf("%v: %s", err, out)
		}
		return j[0].State, j[0].Report
	}
	second.await("in the middle of the job", 60*time.Second, func() bool {
		_, r := state(f.coordinator.url)
		return r.Done > 10
	})
	at(second.url, "warmup", "pause", job.ID)
	second.await("paused", 20*time.Second, func() bool { s, _ := state(second.url); return s == "paused" })
	at(second.url, "warmup", "resume", job.ID)
	second.await("running", 20*time.Second, func() bool { s, _ := state(second.url); return s == "running" })
	_ = f.coordinator.cmd.Process.Kill()
	<-f.coordinator.done
	second.await("done with the job", 90*time.Second, func() bool {
		s, r := state(second.url)
		if s == "failed" {
			t.Fatalf("the job failed: %s", at(second.url, "warmup", "list"))
		}
		return s == "done" && r.Done == 120 && r.Failed == 0
	})
	for i, w := range f.workers {
		if cold := w.cold(prompts); len(cold) > 0 {
			t.Errorf("worker %d is cold for %d of 120 prompts: %s", i+1, len(cold), cold[0])
		}
	}

	rdb := redis.NewClient(&redis.Options{Addr: f.redis.Addr()})
	defer rdb.Close()
	pinned := func() (n int) {
		keys, err := rdb.Keys(t.Context(), block.KeyPrefix+"*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if ttl, err := rdb.PTTL(t.Context(), k).Result(); err == nil && ttl == -1 {
				n++
			}
		}
		return n
	}
	at(second.url, "pin", "add", "--prompt", prompts[0], "--id", "first")
	second.await("keeping what is pinned", 30*time.Second, func() bool { return pinned() >= 8 })
	n := pinned()
	keys, err := rdb.Keys(t.Context(), block.KeyPrefix+"*").Result()
	if err != nil {
		t.Fatal(err)
	}
	if err := rdb.Del(t.Context(), keys...).Err(); err != nil {
		t.Fatal(err)
	}
	at(second.url, "pin", "add", "--prompt", "short", "--id", "second") // a round comes every minute, and with every change
	second.await("computing again what is pinned", 30*time.Second, func() bool { return pinned() == n })
	at(second.url, "pin", "remove", "first", "second")
	second.await("letting go of what was pinned", 30*time.Second, func() bool { return pinned() == 0 })
}

// A warm set goes from one fleet to another, whose Redis is empty, without a token being computed; other weights refuse it.
func TestWarmSetIsExportedAndImported(t *testing.T) {
	from, to := startFleet(t), startFleet(t)
	path, prompts := manifest(t, 60)
	warm(t, path, "--worker", from.workers[0].url)
	file := filepath.Join(t.TempDir(), "warm.kvt")
	kvtier(t, "warmup", "export", path, "--out", file, "--worker", from.workers[0].url, "--redis", from.redis.URL())
	kvtier(t, "warmup", "import", file, "--worker", to.workers[0].url, "--redis", to.redis.URL())
	for i, w := range to.workers {
		if cold := w.cold(prompts); len(cold) > 0 {
			t.Errorf("worker %d is cold for %d of 60 prompts: %s", i+1, len(cold), cold[0])
		}
	}
	if r := warm(t, path, "--worker", to.workers[1].url); r.Computed != 0 {
		t.Errorf("after the import %d tokens had to be computed", r.Computed)
	}
	if a, b := from.workers[0].complete(prompts[7]), to.workers[0].complete(prompts[7]); !slices.Equal(a.Choices[0].TokenIDs, b.Choices[0].TokenIDs) {
		t.Errorf("output differs: %v and %v", a.Choices[0].TokenIDs, b.Choices[0].TokenIDs)
	}

	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what, want string, file string) {
		t.Helper()
		cmd := exec.Command(bin, "warmup", "import", file, "--worker", to.workers[0].url, "--redis", to.redis.URL())
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(out), want) {
			t.Errorf("%s: exit code %d: %s", what, code, out)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	bad := filepath.Join(t.TempDir(), "bad.kvt")
	if err := os.WriteFile(bad, b, 0o600); err != nil {
		t.Fatal(err)
	}
	refuse("a damaged file", "bad archive", bad)
	first := to.workers[0].complete("x").KVTier.Label
	next := map[string]string{"shakespeare-3m-v1": "shakespeare-3m-v2", "shakespeare-3m-v2": "shakespeare-3m-v1"}[first]
	kvtier(t, "model", "activate", "shakespeare", next, "--coordinator", to.coordinator.url)
	to.workers[0].await("on "+next, 20*time.Second, func() bool { return to.workers[0].complete("x").KVTier.Label == next })
	refuse("a file of other weights", "of weights", file)
}

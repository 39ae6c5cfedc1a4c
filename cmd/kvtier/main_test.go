package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	redis.SetLogger(silent{})
	// After the outage of the demo the client's probe of a dead server may still be asleep when its pool is closed: for a second at most.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

func kvtier(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

// The main job, as a newcomer runs it. Everything else about it is in its own verdict.
func TestDemoKeepsItsPromises(t *testing.T) {
	code, stdout, stderr := kvtier(t, "demo", "--json")
	var r demoReport
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("exit code %d, no JSON: %v\n%s%s", code, err, stdout, stderr)
	}
	if code != exitOK || len(r.Broken) > 0 || !r.Summary.Identical || len(r.Requests) != demoSteps {
		t.Errorf("exit code %d, %d requests, broken: %v\n%s", code, len(r.Requests), r.Broken, stderr)
	}
	if r.Summary.ReusedRatio < 0.5 || r.Swap.LaterCached == 0 || r.Outage.Requests == 0 {
		t.Errorf("nothing was put to the test: %+v %+v %+v", r.Summary, r.Swap, r.Outage)
	}
}

// A verdict that cannot fail proves nothing.
func TestDemoJudgesBrokenPromises(t *testing.T) {
	good := func() *demo {
		d := &demo{report: &demoReport{Swap: demoSwap{LaterCached: 1}, Outage: demoOutage{Requests: 1, Identical: true, Degraded: 1, HitsBack: true}}}
		for _, s := range demoScenarios() {
			d.report.Requests = append(d.report.Requests, demoRow{Phase: "reuse", Scenario: s.name, Worker: 2, Remote: 16, Identical: true})
		}
		return d
	}
	d := good()
	if d.judge(); len(d.report.Broken) != 0 {
		t.Fatalf("a good run was judged broken: %v", d.report.Broken)
	}
	for want, spoil := range map[string]func(*demoReport){
		"never wrong":     func(r *demoReport) { r.Requests[1].Identical = false },
		"never stale":     func(r *demoReport) { r.Swap.FirstCached = 16 },
		"never stale: 1":  func(r *demoReport) { r.Swap.BackFirstCached = 1 },
		"still in Redis":  func(r *demoReport) { r.Swap.OldKeysLeft = 1 },
		"no remote hit":   func(r *demoReport) { r.Requests[2].Remote = 0 },
		"requests failed": func(r *demoReport) { r.Outage.Failed = 1 },
		"not noticed":     func(r *demoReport) { r.Outage.Degraded = 0 },
		"came back":       func(r *demoReport) { r.Outage.HitsBack = false },
	} {
		d := good()
		spoil(d.report)
		d.judge()
		if !strings.Contains(strings.Join(d.report.Broken, "\n"), want) {
			t.Errorf("want a broken promise that mentions %q, got %v", want, d.report.Broken)
		}
		if err := d.report.show(&bytes.Buffer{}, false); err == nil {
			t.Errorf("%s: exit code would be 0", want)
		}
	}
}

func TestBadInputIsNamed(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"unknown command":      {[]string{"demmo"}, "demmo"},
		"unknown subcommand":   {[]string{"model", "activat"}, "activate"},
		"unknown flag":         {[]string{"demo", "--fast"}, "--fast"},
		"argument":             {[]string{"demo", "now"}, "now"},
		"Redis URL":            {[]string{"demo", "--redis", "http://x"}, "redis://"},
		"Redis that is down":   {[]string{"demo", "--redis", "redis://127.0.0.1:1"}, "is it running"},
		"missing model":        {[]string{"worker", "--checkpoint", filepath.Join(dir, "none.gguf")}, "none.gguf"},
		"no model":             {[]string{"worker", "--checkpoint", file("text.gguf", "hello")}, "GGUF"},
		"truncated model":      {[]string{"worker", "--checkpoint", file("cut.gguf", "GGUF\x03\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f")}, "cut.gguf"},
		"worker's Redis":       {[]string{"worker", "--redis", "localhost:6379"}, "redis"},
		"password in message":  {[]string{"worker", "--redis", "redis://u:hunter2@host:port"}, "redis"},
		"hedge without Redis":  {[]string{"worker", "--redis-hedge", "50ms"}, "--redis"},
		"hedge, no replica":    {[]string{"worker", "--redis", "redis://127.0.0.1:1", "--redis-hedge", "50ms"}, "Replicas"},
		"replica of a cluster": {[]string{"worker", "--redis", "redis+cluster://127.0.0.1:1", "--redis-hedge", "50ms", "--redis-replica", "h"}, "Replicas"},
		"write policy":         {[]string{"worker", "--write-policy", "never"}, "through"},
		"on expiry":            {[]string{"worker", "--on-expiry", "maybe"}, "strict"},
		"open to the world":    {[]string{"worker", "--listen", ":0"}, "--insecure"},
		"coordinator alone":    {[]string{"worker", "--coordinator", "http://127.0.0.1:1"}, "--redis"},
		"hot tier of nothing":  {[]string{"worker", "--hot-bytes", "1KiB"}, "--hot-bytes is 1 KiB, but one block"},
		"queue of nothing":     {[]string{"worker", "--redis", "redis://127.0.0.1:1", "--spill-bytes", "1KiB"}, "--spill-bytes is 1 KiB, but one block"},
		"size":                 {[]string{"worker", "--hot-bytes", "lots"}, "256MiB"},
		"engine":               {[]string{"worker", "--engine", "abacus"}, "llamacpp"},
		"no llama-server":      {[]string{"worker", "--engine", "llamacpp", "--checkpoint", "x.gguf"}, "--llama-url"},
		"no llama engine":      {[]string{"worker", "--llama-url", "http://127.0.0.1:1"}, "--engine llamacpp"},
		"llama-server's URL":   {[]string{"worker", "--engine", "llamacpp", "--llama-url", "localhost:1", "--checkpoint", "../../models/shakespeare-3m-v1.gguf"}, "http://127.0.0.1:8080"},
		"no such slots":        {[]string{"worker", "--engine", "llamacpp", "--llama-url", "http://127.0.0.1:1", "--slots-dir", "/no/such/dir", "--checkpoint", "x.gguf"}, "SlotsDir"},
		"coordinator's listen": {[]string{"coordinator", "--listen", "0.0.0.0:0"}, "--insecure"},
		"coordinator's Redis":  {[]string{"coordinator", "--redis", "rediss//x"}, "redis"},
		"chaos in the open":    {[]string{"chaos", "--listen", ":0"}, "--insecure"},
		"chaos upstream":       {[]string{"chaos", "--upstream", "redis"}, "host:port"},
		"no prompts":           {[]string{"warmup", filepath.Join(dir, "none.txt")}, "none.txt"},
		"empty prompts":        {[]string{"warmup", file("empty.txt", "\n\n")}, "one per line"},
		"worker URL":           {[]string{"warmup", file("p.txt", "a\n"), "--worker", "127.0.0.1"}, "http://"},
		"lonely activation":    {[]string{"warmup", "run", file("p.txt", "a\n"), "--activate-when-done"}, "--checkpoint"},
		"checkpoint alone":     {[]string{"warmup", "run", file("p.txt", "a\n"), "--checkpoint", "x.gguf"}, "--redis"},
		"missing version":      {[]string{"model", "activate", "m"}, "arg"},
		"coordinator URL":      {[]string{"model", "status", "--coordinator", "::"}, "coordinator"},
	} {
		code, _, stderr := kvtier(t, c.args...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit code %d, %s; want %d and a message that mentions %q", name, code, stderr, exitUsage, c.want)
		}
		if strings.Contains(stderr, "hunter2") {
			t.Errorf("%s: the message contains the password: %s", name, stderr)
		}
	}
}

func TestUnreachableServersAreFailuresNotUsage(t *testing.T) {
	for _, args := range [][]string{
		{"model", "status", "--coordinator", "http://127.0.0.1:1"},
		{"healthcheck", "--url", "http://127.0.0.1:1/readyz"},
	} {
		if code, _, stderr := kvtier(t, args...); code != exitFailed || !strings.Contains(stderr, "127.0.0.1:1") {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
}

func TestFlagsComeFromTheEnvironment(t *testing.T) {
	t.Setenv("KVTIER_WRITE_POLICY", "sometimes")
	if code, _, stderr := kvtier(t, "worker"); code != exitUsage || !strings.Contains(stderr, "sometimes") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if code, _, stderr := kvtier(t, "worker", "--write-policy", "seldom"); !strings.Contains(stderr, "seldom") {
		t.Errorf("the command line does not win: exit code %d, %s", code, stderr)
	}
	t.Setenv("KVTIER_HOT_BYTES", "much")
	if code, _, stderr := kvtier(t, "worker"); code != exitUsage || !strings.Contains(stderr, "KVTIER_HOT_BYTES") {
		t.Errorf("exit code %d, %s; want the variable's name", code, stderr)
	}
}

func TestVersionAndHelp(t *testing.T) {
	code, stdout, _ := kvtier(t, "version", "--json")
	var v struct{ Version, Go string }
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != exitOK || v.Version == "" || v.Go == "" {
		t.Errorf("version --json: %d %s %v", code, stdout, err)
	}
	for _, c := range newRoot().Commands() {
		if c.Short == "" || !c.HasSubCommands() && c.RunE == nil {
			t.Errorf("%s has no help or does nothing", c.Name())
		}
	}
}

func TestProgressOfSomethingThatIsNoTerminal(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, "job", 2)
	p.step()
	p.next = time.Time{}
	p.step()
	p.done()
	if got := out.String(); got != "job: 2 of 2\n" {
		t.Errorf("printed %q", got)
	}
}

func TestAdvertisedAddressCanBeReached(t *testing.T) {
	for listen, want := range map[string]string{"127.0.0.1:80": "127.0.0.1:80", "[::1]:80": "[::1]:80", ":80": "me:80", "0.0.0.0:80": "me:80", "[::]:80": "me:80"} {
		if got := advertised(listen, "me"); got != want {
			t.Errorf("%s is advertised as %s, want %s", listen, got, want)
		}
	}
}

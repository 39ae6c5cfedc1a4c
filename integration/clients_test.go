package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kvtier/kvtier/internal/testredis"
)

var updateClients = flag.Bool("update-clients", false, "write the table of clients into docs/API.md")

// clientFeatures are the rows of the table of clients, in order.
var clientFeatures = []string{
	"models", "completion", "several prompts", "token ids", "chat", "asynchronous", "stream", "usage in streams", "cached tokens", "stop", "n",
	"log-probabilities", "echo, log-probabilities", "cache_salt", "request id", "benchmark", "every route of the worker", "every route of the coordinator",
	"context overflow", "unknown model", "wrong token", "tools", "json_schema", "Responses API", "embeddings",
}

// clientResult is what a check of clients/checks reports of one feature.
type clientResult struct {
	Client, Version, Feature string

	Result string // "works", or the error that the user of the client sees
	OK     bool   // it is what it should be: some errors should be
}

// TestClients runs the programs that people use with OpenAI's API, in the environments that clients/make-env makes (make clients), against one of two
// workers that share a tier; they compare what they get with the other one's answers. The table in docs/API.md is what comes out.
func TestClients(t *testing.T) {
	environments := os.Getenv("KVTIER_CLIENTS")
	if environments == "" {
		t.Skip("KVTIER_CLIENTS is not set: make clients")
	}
	checks, err := filepath.Glob("../clients/checks/with_*")
	if err != nil || len(checks) == 0 {
		t.Fatalf("no checks: %v", err)
	}
	const token, model = "secret", "kvtier/shakespeare" // most names on hubs have a slash
	fleet, scratch := startClientFleet(t, token, model), startClientFleet(t, token, model)
	env := append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PYTHON") || strings.HasPrefix(v, "OPENAI_") }),
		"KVTIER_WORKER="+fleet.workers[0].url, "KVTIER_OTHER="+fleet.workers[1].url, "KVTIER_TOKEN="+token, "KVTIER_MODEL="+model,
		"KVTIER_SCRATCH_WORKER="+scratch.workers[0].url, "KVTIER_SCRATCH_COORDINATOR="+scratch.coordinator.url,
		"HOME="+t.TempDir(), "TMPDIR="+t.TempDir(), "NO_COLOR=1",
		"HF_HUB_OFFLINE=1", "HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1", "VLLM_NO_USAGE_STATS=1", "GRADIO_ANALYTICS_ENABLED=False", "LITELLM_LOCAL_MODEL_COST_MAP=True")

	var mu sync.Mutex
	var results []clientResult
	t.Run("with", func(t *testing.T) {
		for _, check := range checks {
			t.Run(strings.TrimPrefix(filepath.Base(check), "with_"), func(t *testing.T) {
				t.Parallel()
				got := runClient(t, environments, check, env)
				mu.Lock()
				defer mu.Unlock()
				results = append(results, got...)
			})
		}
	})
	for _, r := range results {
		if !slices.Contains(clientFeatures, r.Feature) {
			t.Errorf("%s reports on %q, which is no row of the table", r.Client, r.Feature)
		}
	}
	table := clientTable(results)
	t.Logf("\n%s", table)
	if !t.Failed() {
		compareClients(t, table)
	}
}

// startClientFleet is startFleet with tokens and a name for the model.
func startClientFleet(t *testing.T, token, model string) *fleet {
	t.Helper()
	f := &fleet{redis: testredis.Start(t)}
	f.coordinator = start(t, "coordinator", "--redis", f.redis.URL(), "--token", token, "--worker-token", token)
	for i := range f.workers {
		f.workers[i] = start(t, "worker", "--redis", f.redis.URL(), "--coordinator", f.coordinator.url, "--coordinator-token", token, "--token", token, "--model", model)
		f.workers[i].await("part of the fleet", 20*time.Second, func() bool { return f.workers[i].status() == "ready" })
	}
	return f
}

// runClient runs one check with the interpreter of the environment that its first line names.
func runClient(t *testing.T, environments, check string, env []string) []clientResult {
	t.Helper()
	source, err := os.ReadFile(check)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(source), "\n")
	_, environment, ok := strings.Cut(line, " environment: ")
	if !ok {
		t.Fatalf("%s does not begin with a comment that says its environment", check)
	}
	interpreter := filepath.Join(environments, environment, "bin", map[string]string{".py": "python", ".mjs": "node"}[filepath.Ext(check)])
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, interpreter, check)
	report := filepath.Join(t.TempDir(), "report")
	cmd.Env = append(slices.Clone(env), "KVTIER_CLIENTS="+environments, "KVTIER_REPORT="+report)
	out, runErr := cmd.CombinedOutput()
	lines, err := os.ReadFile(report)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var results []clientResult
	for d := json.NewDecoder(bytes.NewReader(lines)); d.More(); {
		var r clientResult
		if err := d.Decode(&r); err != nil {
			t.Fatalf("%v\n%s", err, lines)
		}
		results = append(results, r)
		if !r.OK {
			t.Errorf("%s %s, %s: %s", r.Client, r.Version, r.Feature, r.Result)
		}
	}
	if len(results) == 0 || runErr != nil {
		t.Errorf("%v, %d results\n%s", runErr, len(results), out)
	}
	return results
}

// clientTable is a Markdown table with a row per feature and a column per client, and the errors that it refers to below it.
func clientTable(results []clientResult) string {
	slices.SortStableFunc(results, func(a, b clientResult) int {
		return strings.Compare(strings.ToLower(a.Client), strings.ToLower(b.Client))
	})
	var clients []string
	cells := map[[2]string]string{}
	for _, r := range results {
		name := r.Client + " " + r.Version
		if !slices.Contains(clients, name) {
			clients = append(clients, name)
		}
		cells[[2]string{r.Feature, name}] = r.Result
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| | %s |\n|---|%s\n", strings.Join(clients, " | "), strings.Repeat("---|", len(clients)))
	var said []string
	for _, feature := range clientFeatures {
		fmt.Fprintf(&b, "| %s |", feature)
		for _, client := range clients {
			switch result, tried := cells[[2]string{feature, client}]; {
			case !tried:
				b.WriteString("  |")
			case result == "works":
				b.WriteString(" works |")
			default:
				i := slices.Index(said, result)
				if i < 0 {
					i, said = len(said), append(said, result)
				}
				fmt.Fprintf(&b, " error %d |", i+1)
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for i, text := range said {
		fmt.Fprintf(&b, "%d. `%s`\n", i+1, strings.ReplaceAll(text, "`", "'"))
	}
	return b.String()
}

var clientsSection = regexp.MustCompile(`(?s)(<!-- clients: written by make clients UPDATE=1 -->\n)(.*?)(<!-- clients end -->\n)`)

// compareClients holds the table in docs/API.md to what came out, or writes it.
func compareClients(t *testing.T, table string) {
	t.Helper()
	const path = "../docs/API.md"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := clientsSection.FindSubmatchIndex(doc)
	if found == nil {
		t.Fatalf("%s has no place for the table of clients", path)
	}
	if *updateClients {
		doc = slices.Concat(doc[:found[4]], []byte(table), doc[found[5]:])
		if err := os.WriteFile(path, doc, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(doc[found[4]:found[5]]), table); diff != "" {
		t.Errorf("the table in docs/API.md is not what came out: make clients UPDATE=1 (-docs +now)\n%s", diff)
	}
}

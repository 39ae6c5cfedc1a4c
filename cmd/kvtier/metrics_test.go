package main

import (
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/llama"
)

var (
	metricName = regexp.MustCompile(`\bkvtier_[a-z0-9_]+`)
	descName   = regexp.MustCompile(`fqName: "([a-z0-9_]+)"`)
)

// An alert on a metric that nobody exports never fires. Every name in the alerts and on the dashboard is one that a worker or a coordinator
// has registered, and every alert is explained to the operator.
func TestAlertsAndDashboardNameMetricsThatExist(t *testing.T) {
	exported := registeredNames(t)
	if len(exported) < 30 {
		t.Fatalf("only %d metrics: %v", len(exported), exported)
	}
	operations := readFile(t, "../../docs/OPERATIONS.md")
	for _, file := range []string{"../../deploy/prometheus/rules.yml", "../../deploy/grafana/dashboards/kvtier.json"} {
		text := readFile(t, file)
		names := metricName.FindAllString(text, -1)
		if len(names) < 10 {
			t.Errorf("%s names only %d metrics", file, len(names))
		}
		for _, n := range names {
			base := n
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if !slices.Contains(exported, n) && !slices.Contains(exported, base) {
				t.Errorf("%s: %s is not exported by anybody", filepath.Base(file), n)
			}
		}
		for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(text, -1) {
			if !strings.Contains(operations, m[1]) {
				t.Errorf("%s is not explained in docs/OPERATIONS.md", m[1])
			}
		}
	}
	var dashboard struct{ Panels []struct{ Title string } }
	if err := json.Unmarshal([]byte(readFile(t, "../../deploy/grafana/dashboards/kvtier.json")), &dashboard); err != nil || len(dashboard.Panels) == 0 {
		t.Errorf("dashboard: %d panels, %v", len(dashboard.Panels), err)
	}
}

func registeredNames(t *testing.T) []string {
	t.Helper()
	server := miniredis.RunT(t)
	url, quiet := "redis://"+server.Addr(), slog.New(slog.DiscardHandler)
	c, err := startCoordinator(coordinatorOptions{redis: url, logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	api := httptest.NewServer(c.Handler(""))
	defer api.Close()
	client, err := coordinator.NewClient(coordinator.ClientOptions{URL: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	n, err := startNode(t.Context(), nodeOptions{
		model: "m", checkpoints: shippedCheckpoints(llama.Options{}), redis: url, coordinator: client, onExpiry: coordinator.Local,
		hotBytes: 1 << 20, sequences: 1, logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(t.Context())
	r := prometheus.NewRegistry()
	registerNode(r, n, "m")
	worker.Handler(n.replica, worker.HandlerOptions{Model: "m", Registry: r})
	ch := make(chan *prometheus.Desc, 1000)
	r.Describe(ch)
	c.Collector().Describe(ch)
	close(ch)
	var names []string
	for d := range ch {
		names = append(names, descName.FindStringSubmatch(d.String())[1])
	}
	return names
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

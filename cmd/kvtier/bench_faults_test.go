package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/internal/bench"
)

// A few rows against the fake server: answers are right, reuse is there or not as the fault has it, and the document gets its table.
func TestBenchFaults(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "FAULTS.md")
	const frame = "# Faults\n\n<!-- results: begin, replaced -->\nold\n<!-- results: end -->\n\nafter\n"
	if err := os.WriteFile(doc, []byte(frame), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := kvtier(t, "bench", "faults", "--json", "--requests", "3", "--prefix-tokens", "512", "--new-tokens", "64", "--write", doc,
		"--only", "no-reuse,full-reuse,refused,reset,bit-flips,flush,tenant-probe")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var rows []bench.FaultRow
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil || len(rows) != 7 {
		t.Fatalf("%d rows, %v: %s", len(rows), err, stdout)
	}
	by := map[string]bench.FaultRow{}
	for _, r := range rows {
		by[r.Fault] = r
		if r.Failed != 0 || !r.Identical || r.Requests == 0 || r.P50Ratio <= 0 || r.P99Ratio <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if by["no-reuse"].Reused != 0 || by["refused"].Reused != 0 {
		t.Errorf("reused: %v of new prompts, %v through refused connections", by["no-reuse"].Reused, by["refused"].Reused)
	}
	if r := by["tenant-probe"]; r.Reused != 0 || r.Welch == nil || r.Welch.N < 60 || r.Requests != 2*r.Welch.N {
		t.Errorf("one tenant was served from what another has, or nothing was compared: %+v", r)
	}
	for _, name := range []string{"refused", "flush"} {
		if by[name].Recovery == nil {
			t.Errorf("%s: no recovery", name)
		}
	}
	text, err := os.ReadFile(doc)
	if err != nil || !strings.HasPrefix(string(text), "# Faults\n\n<!-- results: begin, replaced -->\n\nMeasured ") || strings.Contains(string(text), "old") ||
		!strings.HasSuffix(string(text), "<!-- results: end -->\n\nafter\n") || !strings.Contains(string(text), "| no-reuse |") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestBenchFaultsJudges(t *testing.T) {
	if err := broken([]bench.FaultRow{{Fault: "a", Identical: true}, {Fault: "b", Identical: true, P50Ratio: 9}}); err != nil {
		t.Error(err)
	}
	err := broken([]bench.FaultRow{{Fault: "a", Failed: 1, Identical: true}, {Fault: "b"}, {Fault: "c", Identical: true, Reused: 0.1, Welch: &bench.Welch{}}})
	if err == nil || !strings.Contains(err.Error(), "a: 1 of") || !strings.Contains(err.Error(), "b: answers") || !strings.Contains(err.Error(), "c: one tenant") {
		t.Errorf("got %v", err)
	}
}

func TestBenchFaultsRefuses(t *testing.T) {
	m := miniredis.RunT(t)
	if err := m.Set("somebody's", "data"); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain.md")
	if err := os.WriteFile(plain, []byte("# Nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"want 1 to":     {"--requests", "0"},
		"context":       {"--prefix-tokens", "5000"},
		"unknown fault": {"--only", "fire"},
		"no lines that": {"--write", plain},
		"none.md":       {"--write", filepath.Join(t.TempDir(), "none.md")},
		"without TLS":   {"--redis", "rediss://127.0.0.1:1"},
		"is it running": {"--redis", "redis://127.0.0.1:1"},
		"empty server":  {"--redis", "redis://" + m.Addr()},
	} {
		code, _, stderr := kvtier(t, append([]string{"bench", "faults"}, args...)...)
		wantCode := exitUsage
		if want == "is it running" {
			wantCode = exitFailed
		}
		if code != wantCode || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit code %d, %q, want %d with %q", args, code, stderr, wantCode, want)
		}
	}
	if got, err := m.Get("somebody's"); err != nil || got != "data" {
		t.Errorf("the server's data is gone: %q, %v", got, err)
	}
}

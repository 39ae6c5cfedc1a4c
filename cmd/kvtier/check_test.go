package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestCheckStale(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"check", "stale", "--seed", "3", "--ops", "60000", "--json"}, &out, &errOut); code != exitOK {
		t.Fatalf("exit code %d: %s", code, errOut.String())
	}
	var rep struct {
		Seed, Ops, Stale int
		Invariants       []struct{ Name string }
		Mutations        *struct{ Seeded, Caught int }
	}
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		t.Fatal(err)
	}
	if rep.Seed != 3 || rep.Ops < 60000 || rep.Stale != 0 || len(rep.Invariants) < 10 || rep.Mutations == nil {
		t.Errorf("%+v", rep)
	}
	out.Reset()
	if code := run(t.Context(), []string{"check", "stale", "--ops", "20000"}, &out, &errOut); code != exitOK || !strings.Contains(out.String(), "0 stale") {
		t.Errorf("exit code %d: %s", code, out.String())
	}
	if code := run(t.Context(), []string{"check", "stale", "--ops", "0"}, &out, &errOut); code != exitUsage {
		t.Errorf("exit code %d for no operations", code)
	}
}

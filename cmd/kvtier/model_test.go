package main

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/models"
)

// A version's life from the command line: registered from a file, by digest and by words, activated beside another, drained, revoked,
// purged for one tenant; and the coordinator's file outlives Redis.
func TestModelCommands(t *testing.T) {
	srv := miniredis.RunT(t)
	state := filepath.Join(t.TempDir(), "state.json")
	c, err := startCoordinator(coordinatorOptions{redis: "redis://" + srv.Addr(), state: state})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hs := httptest.NewServer(c.Handler("t"))
	defer hs.Close()
	model := func(want int, args ...string) string {
		t.Helper()
		code, stdout, stderr := kvtier(t, append([]string{"model", "--coordinator", hs.URL, "--token", "t", "--as", "ann"}, args...)...)
		if code != want {
			t.Fatalf("kvtier model %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, stdout, stderr)
		}
		return stdout + stderr
	}
	b, err := models.FS.ReadFile(shippedV1 + ".gguf")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "step-1.gguf")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := identityOf(file, 0, block.QuantNone)
	if err != nil {
		t.Fatal(err)
	}
	layout := id.Layout.String()
	if out := model(exitOK, "register", "m", "--file", file); !strings.Contains(out, "step-1") || !strings.Contains(out, id.Variant().String()) {
		t.Errorf("register: %s", out)
	}
	model(exitOK, "register", "m", "--weights", strings.Repeat("ab", 32), "--layout", layout, "--label", "b")
	if out := model(exitOK, "register", "m", "--declared", "of tuesday", "--layout", layout, "--label", "c", "--activate", "--keep"); !strings.Contains(out, "(declared)") {
		t.Errorf("declared weights do not show: %s", out)
	}
	model(exitUsage, "register", "m", "--declared", "x")
	model(exitUsage, "register", "m", "--declared", "x", "--file", file)
	model(exitUsage, "register", "m", "--file", file+"no")
	model(exitOK, "activate", "m", "b", "--keep")
	model(exitOK, "drain", "m", "step-1")
	model(exitOK, "revoke", "m", "step-1")
	model(exitOK, "purge", "m", "--tenant", "acme", "--secret", "s")
	model(exitUsage, "purge", "m", "b", "--tenant", "acme")
	unchanged := model(exitOK, "status", "m", "--json")
	for _, bad := range [][]string{{""}, {"--tenant", ""}, {"--tenant="}, {"--tenant", "a", "--unsalted"}, {"b", "--unsalted"}} { // empty is not all
		if out := model(exitUsage, append([]string{"purge", "m"}, bad...)...); !strings.Contains(out, "empty") && !strings.Contains(out, "leave") {
			t.Errorf("purge m %q: %s", bad, out)
		}
	}
	t.Setenv("KVTIER_TENANT", "")
	if out := model(exitUsage, "purge", "m"); !strings.Contains(out, "KVTIER_TENANT is set and empty") {
		t.Errorf("an empty variable: %s", out)
	}
	os.Unsetenv("KVTIER_TENANT")
	if now := model(exitOK, "status", "m", "--json"); now != unchanged {
		t.Errorf("what was refused has changed the record: %s, before %s", now, unchanged)
	}
	model(exitOK, "purge", "m", "--unsalted")
	model(exitUsage, "repair", "m")
	var st []coordinator.Status
	if err := json.Unmarshal([]byte(model(exitOK, "status", "m", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	purged := map[block.Digest]bool{}
	for _, x := range st[0].Tenants {
		purged[x.Namespace] = x.Purged > 0
	}
	if len(purged) != 2 || !purged[block.Namespace([]byte("s"), "acme")] || !purged[block.Namespace(nil, "")] {
		t.Errorf("tenants: %+v", st[0].Tenants)
	}
	if raw, _ := srv.Get("kvt1:{ctl}:model:m"); strings.Contains(raw, "acme") {
		t.Error("the salt is in the record")
	}
	if out := model(exitOK, "list"); out != "m\n" {
		t.Errorf("list: %q", out)
	}
	history := model(exitOK, "history", "m")
	for _, want := range []string{"purge-tenant", "revoke", "drain", "activate", "register", "ann"} {
		if !strings.Contains(history, want) {
			t.Errorf("history lacks %s:\n%s", want, history)
		}
	}
	gen := st[0].Gen

	// Redis forgets, the coordinator is restarted, the file knows.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	srv.FlushAll()
	again, err := startCoordinator(coordinatorOptions{redis: "redis://" + srv.Addr(), state: state})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	res, err := again.Drain(t.Context(), "m", "b")
	if err != nil || res.Gen <= gen {
		t.Errorf("generation %d after %d, %v", res.Gen, gen, err)
	}
	for _, v := range res.Versions {
		if v.Label == "step-1" && v.State != coordinator.Revoked {
			t.Errorf("step-1 is %s again", v.State)
		}
	}
}

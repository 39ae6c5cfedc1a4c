package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/internal/testredis"
)

// before is the version to run beside this one: the last release, or, as long as there is none, the commit from which other versions
// were meant to work together.
const before = "d3ad5ad"

// earlier builds kvtier as it was. Where the history is not at hand, as in a shallow clone, there is nothing to build.
func earlier(t *testing.T) string {
	t.Helper()
	git := func(args ...string) *exec.Cmd { // a checkout may belong to another user, of which git is wary
		return exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", ".."}, args...)...)
	}
	version := before
	if tag, err := git("describe", "--tags", "--abbrev=0", "--match", "v*").Output(); err == nil {
		version = strings.TrimSpace(string(tag))
	}
	if out, err := git("cat-file", "-e", version+"^{commit}").CombinedOutput(); err != nil {
		t.Skipf("no history with %s to build an earlier version from (git fetch --unshallow --tags): %v %s", version, err, out)
	}
	dir := t.TempDir()
	archive, err := git("archive", "--format=tar", version).Output()
	if err != nil {
		t.Fatal(err)
	}
	tar := exec.Command("tar", "-x", "-C", dir)
	tar.Stdin = strings.NewReader(string(archive))
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	path := filepath.Join(dir, "kvtier-before")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./cmd/kvtier")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", version, err, out)
	}
	t.Logf("beside %s", version)
	return path
}

// Upgrades and rollbacks: a coordinator and a worker of the version before run beside those of this one, on one Redis. Whoever is asked
// activates and purges for all, and as long as the wire format is the same each uses what the other has stored.
func TestTwoVersionsSideBySide(t *testing.T) {
	old := earlier(t)
	now, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	url := testredis.Start(t).URL()
	turn := map[string]int{}
	g := startGroup(t, func(role string, args ...string) *process {
		t.Helper()
		path := []string{old, now}[turn[role]]
		turn[role]++
		return launch(t, path, nil, append([]string{role, "--redis", url}, args...)...)
	})
	if wire(t, old) != wire(t, now) {
		t.Logf("wire format %d beside %d: nothing is shared", wire(t, old), wire(t, now))
		g.swap(0)
		g.swap(1)
		return
	}
	g.drill()
	g.swap(1)
	g.share(0, 1)
}

func wire(t *testing.T, path string) (major int) {
	t.Helper()
	out, err := exec.Command(path, "version", "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Major int `json:"wire_major"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatal(err)
	}
	return v.Major
}

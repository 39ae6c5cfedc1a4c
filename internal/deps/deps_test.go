// Package deps has no code, only the test that keeps imports pointing one way:
//
//	cmd -> worker -> {tiered, coordinator} -> {codec, store} -> block
package deps

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kvtier/kvtier"

// forbidden lists the arrows that must not exist, by directory and everything below it. An arrow counts through other
// packages too: codec -> internal/x -> store is one from codec to store.
var forbidden = []struct {
	from string
	to   []string
	why  string
}{
	{"block", []string{"codec", "store", "tiered", "coordinator", "worker", "cmd", "internal"},
		"block is the vocabulary that everything shares; what it imports, everything imports"},
	{"codec", []string{"store", "tiered", "coordinator", "worker", "cmd"},
		"codec turns blocks into bytes and must not know where the bytes are kept"},
	{"store", []string{"codec", "tiered", "coordinator", "worker", "cmd"},
		"store keeps opaque bytes; a back end that could look into them would be tied to one wire format"},
	{"gate", []string{"block", "codec", "store", "tiered", "coordinator", "worker", "cmd"},
		"the gate is arithmetic over measurements: whoever measures imports it"},
	{"tiered", []string{"coordinator", "worker", "cmd"},
		"tiered learns the generation through an interface, so that it can be tested, and run, without a coordinator"},
	{"coordinator", []string{"tiered", "worker", "warmup", "cmd"},
		"the coordinator decides about versions and never touches a cached value; it knows no tier"},
	{"worker", []string{"warmup", "cmd"},
		"flags, environment and the choice of concrete tiers belong to cmd; a worker warms what it is asked to and knows no job"},
	{"warmup", []string{"cmd"},
		"flags, environment and the choice of concrete tiers belong to cmd"},
	{"worker/engine", []string{"tiered", "coordinator", "codec", "store"},
		"an engine computes and copies K/V; one that knew the cache could not be swapped or trusted to measure it"},
	{"worker/llama", []string{"tiered", "coordinator", "codec", "store"},
		"an engine computes and copies K/V; one that knew the cache could not be swapped or trusted to measure it"},
	{"worker/llamacpp", []string{"tiered", "coordinator", "codec", "store"},
		"an engine computes and copies K/V; one that knew the cache could not be swapped or trusted to measure it"},
	{"internal", []string{"cmd"},
		"helpers are below what they help"},
}

// testOnly lists modules that must stay out of the product, with the packages that may import them all the same.
var testOnly = []struct {
	path   string
	except []string
	why    string
}{
	{"github.com/testcontainers/", nil, "a client of Docker has no place in the binary"},
	{"github.com/alicebob/miniredis/", []string{"cmd/kvtier"}, "a fake Redis without eviction is good for tests and the demo only"},
	{"github.com/Shopify/toxiproxy/", nil, "it injects faults"},
	{"go.uber.org/goleak", nil, "it inspects goroutines for tests"},
	{"pgregory.net/rapid", nil, "it generates inputs for tests"},
	{"github.com/openai/openai-go/", nil, "a client of the API that the worker serves; tests hold the two together"},
	{"github.com/getkin/kin-openapi/", nil, "it reads API descriptions; tests hold the servers to theirs"},
	{"github.com/google/go-cmp/", nil, "it may panic by design and is documented as for tests only"},
	{"testing", nil, "it registers flags and is for tests"},
}

// testSupport says whether a package exists for tests: it may import the modules of testOnly, and no product package may
// import it.
func testSupport(dir string) bool {
	name := dir[strings.LastIndex(dir, "/")+1:]
	return within(dir, "integration") || within(dir, "internal/deps") || strings.HasPrefix(dir, "internal/test") || strings.HasSuffix(name, "test")
}

// goPackage is what this test reads of the output of go list -json. TestImports and XTestImports are left out on purpose:
// a test may wire what its package must not.
type goPackage struct {
	ImportPath string
	Imports    []string
}

func TestImportsPointDown(t *testing.T) {
	packages := list(t)
	named := map[string]bool{}
	for _, rule := range forbidden {
		for _, dir := range append([]string{rule.from}, rule.to...) {
			named[dir] = true
		}
		for _, from := range slices.Sorted(maps.Keys(packages)) {
			if !within(from, rule.from) {
				continue
			}
			for _, to := range rule.to {
				if path := pathTo(packages, from, to); path != nil {
					t.Errorf("%s\n\t%s must not depend on %s: %s", strings.Join(path, " -> "), rule.from, to, rule.why)
				}
			}
		}
	}

	for _, dir := range slices.Sorted(maps.Keys(named)) {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(packages)), func(have string) bool { return within(have, dir) }) {
			t.Errorf("a rule names %s, and there is no package in or below it: did it move? Then the rules move too", dir)
		}
	}

	for _, from := range slices.Sorted(maps.Keys(packages)) {
		if !within(from, "block") {
			continue
		}
		for _, imported := range packages[from].Imports {
			if !standard(imported) && !within(dirOf(imported), "block") {
				t.Errorf("%s -> %s\n\tblock imports the standard library only: what it imports, everything imports", from, imported)
			}
		}
	}
}

func TestTestOnlyImportsStayInTests(t *testing.T) {
	packages := list(t)
	for _, from := range slices.Sorted(maps.Keys(packages)) {
		if testSupport(from) {
			continue
		}
		for _, imported := range packages[from].Imports {
			if dir := dirOf(imported); dir != "" && testSupport(dir) {
				t.Errorf("%s -> %s\n\t%s exists for tests; product code must not need it", from, dir, dir)
			}
			for _, rule := range testOnly {
				if strings.HasPrefix(imported+"/", strings.TrimSuffix(rule.path, "/")+"/") && !slices.Contains(rule.except, from) {
					t.Errorf("%s -> %s\n\tonly tests import it: %s", from, imported, rule.why)
				}
			}
		}
	}
}

// TestPathTo keeps the search honest: a rule that finds nothing must not be a search that cannot find.
func TestPathTo(t *testing.T) {
	packages := map[string]goPackage{
		"codec":          {Imports: []string{"fmt", module + "/internal/x"}},
		"internal/x":     {Imports: []string{module + "/internal/y", module + "/block"}},
		"internal/y":     {Imports: []string{module + "/store/memstore", module + "/internal/x"}},
		"store/memstore": {},
		"storekeeper":    {},
		"block":          {},
	}
	for _, test := range []struct{ from, to, want string }{
		{"codec", "store", "codec -> internal/x -> internal/y -> store/memstore"},
		{"codec", "block", "codec -> internal/x -> block"},
		{"codec", "storekeeper", ""},
		{"block", "store", ""},
		{"store/memstore", "store", ""}, // a package below store is store
	} {
		if got := strings.Join(pathTo(packages, test.from, test.to), " -> "); got != test.want {
			t.Errorf("path from %s to %s: got %q, want %q", test.from, test.to, got, test.want)
		}
	}
}

// list returns every package of the module by its directory.
func list(t *testing.T) map[string]goPackage {
	t.Helper()
	// The test cache knows what this process reads and not what go list reads. Listing the directories makes a change to any
	// file of the module a reason to run again.
	err := filepath.WalkDir("../..", func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// -e: a package that does not build is go build's to report, and must not hide the arrows of the others
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.." // the module
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]goPackage{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages[dirOf(p.ImportPath)] = p
	}
	if len(packages) == 0 {
		t.Fatal("go list found no packages")
	}
	return packages
}

// pathTo returns the shortest chain of imports inside the module from a package to any package in or below the directory
// to, or nil. A package that is itself there has no path: its own directory is not above it.
func pathTo(packages map[string]goPackage, from, to string) []string {
	if within(from, to) {
		return nil
	}
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if within(queue[0], to) {
			var path []string
			for at := queue[0]; at != ""; at = before[at] {
				path = append(path, at)
			}
			slices.Reverse(path)
			return path
		}
		for _, imported := range packages[queue[0]].Imports {
			dir := dirOf(imported)
			if _, seen := before[dir]; dir == "" || seen {
				continue
			}
			before[dir] = queue[0]
			queue = append(queue, dir)
		}
	}
	return nil
}

// within says whether dir is parent or below it.
func within(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

// dirOf returns the directory of a package of this module, or "" for any other package.
func dirOf(importPath string) string {
	dir, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return dir
}

// standard says whether an import path is the standard library's: its first element has no dot.
func standard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

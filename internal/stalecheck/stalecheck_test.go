package stalecheck

import (
	"context"
	"flag"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/google/go-cmp/cmp"

	"github.com/kvtier/kvtier/internal/mutation"
)

var (
	seed = flag.Uint64("seed", 1, "first seed")
	ops  = flag.Int("ops", 400_000, "operations; 10 million take about a minute on two cores")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNothingStaleIsServed(t *testing.T) {
	res, err := Run(context.Background(), Options{Seed: *seed, Ops: *ops})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d operations in %.1f s (%.0f a second): %v", res.Ops, res.Seconds, float64(res.Ops)/res.Seconds, res.Counts)
	if v := res.Violation; v != nil {
		fatal(t, v)
	}
	// Nothing is proved by a run in which nothing happens.
	for _, i := range res.Invariants {
		if i.Checks == 0 {
			t.Errorf("%s was never compared: %s", i.Name, i.Text)
		}
	}
	for name, n := range res.Counts {
		if n == 0 {
			t.Errorf("no %s at all", name)
		}
	}
}

// Equal options give equal runs, however many episodes run at once.
func TestRunsAreDeterministic(t *testing.T) {
	run := func(parallel int) Result {
		r, err := Run(context.Background(), Options{Seed: 42, Ops: 30_000, Episode: 5000, Parallel: parallel})
		if err != nil {
			t.Fatal(err)
		}
		r.Seconds = 0
		return r
	}
	if diff := cmp.Diff(run(1), run(2)); diff != "" {
		t.Error(diff)
	}
}

func TestACancelledRunSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r, err := Run(ctx, Options{Ops: 1 << 40}); err == nil || r.Ops > 1<<20 {
		t.Errorf("%d operations and error %v", r.Ops, err)
	}
}

// In a build without the tag nothing of the seeded bugs is left: neither a call nor a name.
func TestPlainBuildsHaveNoMutants(t *testing.T) {
	if mutation.Enabled {
		t.Skip("this build has them")
	}
	path := filepath.Join(t.TempDir(), "kvtier")
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/kvtier").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command("go", "tool", "nm", path).CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"mutation.Is", "mutation.seeded", "tiered.(*Cache).relabel"} {
		if strings.Contains(string(out), s) {
			t.Errorf("the binary contains %s", s)
		}
	}
}

func fatal(t *testing.T, v *Violation) {
	t.Helper()
	for _, line := range v.Trace {
		t.Log(line)
	}
	t.Fatalf("%v\nfaults that it needs: %q", v, v.Faults)
}

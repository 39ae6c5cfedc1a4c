//go:build kvtier_mutations

package stalecheck

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/internal/mutation"
)

// scenario is a test elsewhere that has to fail when a bug is seeded. They run as processes of their own.
type scenario struct{ pkg, run string }

// scenarios are for bugs that simulation alone does not show: behind them stands another comparison that still holds, or a part of
// the real thing that is not simulated.
var scenarios = map[mutation.Name]scenario{
	mutation.SkipWeightsDigest: {"./codec", "TestForeignIsRefused"},
	mutation.LeaseFromReply:    {"./coordinator", "TestLeaseCountsFromBeforeTheRead"},
	mutation.NoPollOnSubscribe: {"./coordinator", "TestReconnectionPolls"},
	mutation.AckBeforeAct:      {"./coordinator", "TestAcknowledgedOnlyAfterOnChange"},
	mutation.TrustStoredLength: {"./codec", "TestAForgedLengthIsRefused"},
	mutation.FlightWithoutGen:  {"./tiered", "TestRaceFillOfTheGenerationBefore"},
}

// Every seeded bug is noticed: by the simulation, by a scenario, or by both.
func TestEveryMutantIsCaught(t *testing.T) {
	t.Cleanup(func() { mutation.Seed(mutation.None) })
	caught := 0
	for _, name := range mutation.All() {
		bySim := simulate(t, name)
		byTest := ""
		if s, ok := scenarios[name]; ok {
			byTest = fails(t, s, name)
		}
		t.Logf("%-66s simulation: %-28s scenario: %s", name, orNo(bySim), orNo(byTest))
		if bySim == "" && byTest == "" {
			t.Errorf("survived: %s", name)
			continue
		}
		caught++
	}
	t.Logf("mutation score: %d of %d", caught, len(mutation.All()))
}

func orNo(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func simulate(t *testing.T, name mutation.Name) string {
	mutation.Seed(name)
	defer mutation.Seed(mutation.None)
	for seed := range uint64(4) {
		res, err := Run(context.Background(), Options{Seed: seed + 1, Ops: 300_000, without: 0})
		if err != nil {
			t.Fatal(err)
		}
		if v := res.Violation; v != nil {
			return v.Invariant + " after " + itoa(v.Episode*20_000+v.Op)
		}
	}
	return ""
}

func itoa(n int) string {
	var b []byte
	for ; n > 0 || b == nil; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

// fails runs a scenario with the bug and reports its name if it fails, as it should.
func fails(t *testing.T, s scenario, name mutation.Name) string {
	cmd := exec.Command("go", "test", "-tags", "kvtier_mutations", "-count=1", "-run", "^"+s.run+"$", s.pkg)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), mutation.Env+"="+string(name))
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return ""
	case !strings.Contains(string(out), "--- FAIL: "+s.run) && !strings.Contains(string(out), "panic:"):
		t.Fatalf("%s did not run: %v\n%s", s.run, err, out)
	}
	return s.run
}

// A build that can be mutated and is not behaves as any other.
func TestWithoutMutantsNothingIsWrong(t *testing.T) {
	mutation.Seed(mutation.None)
	res, err := Run(context.Background(), Options{Seed: 9, Ops: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	if res.Violation != nil {
		fatal(t, res.Violation)
	}
}

package main

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/internal/stalecheck"
)

// errStale means that the check ran and found something.
var errStale = errors.New("an invariant is broken")

type checkFlags struct {
	seed   uint64
	ops    int
	asJSON bool
}

func newCheck() *cobra.Command {
	cmd := &cobra.Command{Use: "check", Short: "Check kvtier's promises on this machine"}
	group(cmd)
	var f checkFlags
	stale := &cobra.Command{
		Use:   "stale",
		Short: "Simulate a fleet with every fault there is and check that nothing stale is served",
		Long: `stale runs real workers, caches and coordinators in virtual time against a simulated Redis that flushes, evicts, goes back to old
snapshots, loses, delays, repeats and damages writes and messages. Every block says what computed it; every block that is used is checked.
Equal seeds give equal runs. It needs no server and no model.

Exit code 1 means that an invariant is broken: the report says which, with the seed and what happened before.`,
		Example: "  kvtier check stale\n  kvtier check stale --seed 7 --ops 10000000 --json",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	stale.Flags().Uint64Var(&f.seed, "seed", 1, "`number` that decides everything that happens")
	stale.Flags().IntVar(&f.ops, "ops", 1_000_000, "operations to run")
	stale.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	cmd.AddCommand(stale)
	return cmd
}

// staleReport is what check stale --json prints.
type staleReport struct {
	stalecheck.Result
	OpsPerSecond float64        `json:"ops_per_second"`
	Mutations    mutationReport `json:"mutations"`
}

// mutationReport says how many protocol bugs were seeded, and how many were caught. A release cannot be mutated, so the numbers
// of a release are zero and say how to get others.
type mutationReport struct {
	Seeded int    `json:"seeded"`
	Caught int    `json:"caught"`
	Known  int    `json:"known"`
	Note   string `json:"note"`
}

func (f *checkFlags) run(cmd *cobra.Command) error {
	if f.ops < 1 || f.ops > math.MaxInt32*64 {
		return usagef("--ops is %d, want 1 or more", f.ops)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // short-lived blocks: collecting less often is a fifth faster
	bar := newProgress(cmd.ErrOrStderr(), "operations", f.ops)
	res, err := stalecheck.Run(cmd.Context(), stalecheck.Options{Seed: f.seed, Ops: f.ops, Progress: bar.add})
	bar.done()
	if err != nil {
		return err
	}
	rep := staleReport{Result: res, OpsPerSecond: math.Round(float64(res.Ops) / res.Seconds), Mutations: mutationReport{
		Known: len(mutation.All()),
		Note:  "this build cannot be mutated; go test -tags kvtier_mutations -run Mutant ./internal/stalecheck seeds each bug and fails if one survives",
	}}
	if mutation.Enabled {
		rep.Mutations.Note = "none is seeded in this process; go test -tags kvtier_mutations -run Mutant ./internal/stalecheck seeds each"
	}
	if f.asJSON {
		err = printJSON(cmd.OutOrStdout(), rep)
	} else {
		err = f.print(cmd, rep)
	}
	if err == nil && res.Violation != nil {
		err = errStale
	}
	return err
}

func (f *checkFlags) print(cmd *cobra.Command, rep staleReport) error {
	w := cmd.OutOrStdout()
	t := newTable("invariant", "what must hold", "checked", "broken")
	for _, i := range rep.Invariants {
		broken := "0"
		if v := rep.Violation; v != nil && v.Invariant == i.Name {
			broken = "1"
		}
		t.row(i.Name, i.Text, humanize.Comma(i.Checks), broken)
	}
	if err := t.print(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "seed %d: %s operations in %v (%s a second), %s blocks checked, %d stale\n", rep.Seed, humanize.Comma(rep.Ops),
		time.Duration(rep.Seconds*float64(time.Second)).Round(10*time.Millisecond), humanize.Comma(int64(rep.OpsPerSecond)),
		humanize.Comma(rep.Counts["blocks_checked"]), rep.Stale)
	fmt.Fprintf(w, "seeded bugs: %d known, %d seeded here; %s\n", rep.Mutations.Known, rep.Mutations.Seeded, rep.Mutations.Note)
	if v := rep.Violation; v != nil {
		fmt.Fprintln(w, v.Error())
		for _, line := range v.Trace {
			fmt.Fprintln(w, line)
		}
	}
	return nil
}

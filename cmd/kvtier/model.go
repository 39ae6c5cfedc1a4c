package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/coordinator"
)

type modelFlags struct {
	url, token string
	actor      string
	asJSON     bool
}

func newModel() *cobra.Command {
	var f modelFlags
	cmd := &cobra.Command{
		Use:   "model",
		Short: "See and change which versions of a model are active",
		Long: `model talks to the coordinator. A version is named by its label, by its weights digest (8 hex digits are enough) or by its variant;
status lists them.`,
		Example: `  kvtier model status
  kvtier model activate shakespeare shakespeare-3m-v1
  kvtier model purge shakespeare
  kvtier model purge shakespeare --tenant acme
  kvtier model register mine --file step-1200.gguf --label step-1200 --activate`,
	}
	group(cmd)
	pf := cmd.PersistentFlags()
	pf.StringVar(&f.url, "coordinator", "http://127.0.0.1:8090", "`URL` of the coordinator")
	pf.StringVar(&f.token, "token", "", "bearer token of the coordinator")
	pf.StringVar(&f.actor, "as", os.Getenv("USER"), "`name` that history shows for a change; nobody checks it")
	pf.BoolVar(&f.asJSON, "json", false, "print JSON")

	var keep bool
	activate := f.change("activate MODEL VERSION", "Make a version active; other weights are revoked and their entries reclaimed", cobra.ExactArgs(2),
		func(ctx context.Context, c *coordinator.Client, a []string) (coordinator.Result, error) {
			return c.Activate(ctx, a[0], a[1], keep)
		})
	activate.Flags().BoolVar(&keep, "keep", false, "leave other weights active too, for a canary or a rolling upgrade")
	cmd.AddCommand(activate, f.register(), f.purge(),
		f.change("drain MODEL VERSION", "Mark a version as on its way out: used, but not warmed any more", cobra.ExactArgs(2),
			func(ctx context.Context, c *coordinator.Client, a []string) (coordinator.Result, error) {
				return c.Drain(ctx, a[0], a[1])
			}),
		f.change("revoke MODEL VERSION", "Take a version's entries away for good", cobra.ExactArgs(2),
			func(ctx context.Context, c *coordinator.Client, a []string) (coordinator.Result, error) {
				return c.Revoke(ctx, a[0], a[1])
			}),
		f.change("repair MODEL", "Replace a damaged record that no coordinator remembers by what can be saved of it, under new epochs", cobra.ExactArgs(1),
			func(ctx context.Context, c *coordinator.Client, a []string) (coordinator.Result, error) {
				return c.Repair(ctx, a[0])
			}),
		f.status(), f.list(), f.history(), f.load())
	return cmd
}

// change is a subcommand that asks the coordinator for a change and prints what it led to.
func (f *modelFlags) change(use, short string, check cobra.PositionalArgs, do func(context.Context, *coordinator.Client, []string) (coordinator.Result, error)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args(check), RunE: func(cmd *cobra.Command, a []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		defer c.Close()
		res, err := do(cmd.Context(), c, a)
		if err != nil {
			return refused(err)
		}
		if f.asJSON {
			return printJSON(cmd.OutOrStdout(), res)
		}
		what := "changed"
		if !res.Changed {
			what = "nothing to change"
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, generation %d\n", res.Model, what, res.Gen)
		return printVersions(cmd.OutOrStdout(), res.Versions)
	}}
}

func (f *modelFlags) status() *cobra.Command {
	return &cobra.Command{Use: "status [MODEL]", Short: "Show versions, workers and what is still to be reclaimed", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			defer c.Close()
			names := a
			if len(names) == 0 {
				if names, err = c.Models(cmd.Context()); err != nil {
					return refused(err)
				}
			}
			all := make([]coordinator.Status, 0, len(names))
			for _, name := range names {
				s, err := c.Status(cmd.Context(), name)
				if err != nil {
					return refused(err)
				}
				all = append(all, s)
			}
			if f.asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			if len(all) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "no models yet: start a worker with --coordinator")
			}
			for _, s := range all {
				if err := printStatus(cmd.OutOrStdout(), s); err != nil {
					return err
				}
			}
			return nil
		}}
}

func (f *modelFlags) client() (*coordinator.Client, error) {
	c, err := coordinator.NewClient(coordinator.ClientOptions{URL: f.url, Token: f.token, Actor: f.actor})
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// refused tells a request that can never succeed from one that failed this time.
func refused(err error) error {
	for _, bad := range []error{coordinator.ErrInvalid, coordinator.ErrNoModel, coordinator.ErrNoVersion, coordinator.ErrAmbiguous} {
		if errors.Is(err, bad) {
			return usageError{err}
		}
	}
	return err
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printStatus(w io.Writer, s coordinator.Status) error {
	fmt.Fprintf(w, "model %s, generation %d\n", s.Model, s.Gen)
	if s.Problem != "" {
		fmt.Fprintf(w, "problem: %s\n", s.Problem)
	}
	if err := printVersions(w, s.Versions); err != nil {
		return err
	}
	t := newTable("worker", "resident", "lease", "generation", "acted on it", "hot hits", "remote hits")
	for _, x := range s.Workers {
		t.row(x.Address, x.Label, string(x.State), fmt.Sprint(x.Gen), yesNo(x.Acknowledged),
			fmt.Sprintf("%.0f blocks", x.Stats["hot_hit_blocks"]), fmt.Sprintf("%.0f blocks", x.Stats["remote_hit_blocks"]))
	}
	if err := t.print(w); err != nil {
		return err
	}
	switch i := s.Invalidation; {
	case i.Gen == 0:
		fmt.Fprintln(w, "nothing has been invalidated")
	case i.Complete:
		fmt.Fprintf(w, "invalidation of generation %d is complete: %d of %d workers have acted on it; %d epochs to reclaim\n", i.Gen, i.Acked, i.Workers, i.Reclaims)
	default:
		fmt.Fprintf(w, "invalidation of generation %d is not complete: %d of %d workers have acted on it, waiting for %s\n",
			i.Gen, i.Acked, i.Workers, strings.Join(i.Lagging, ", "))
	}
	if r := s.Reclaiming; r != nil && !r.Done {
		fmt.Fprintf(w, "reclaiming %d epochs of all models: %d entries, %s deleted since %s\n", r.Epochs, r.Deleted, humanize.IBytes(uint64(r.Bytes)), when(r.Begun))
	}
	if len(s.Tenants) == 0 {
		return nil
	}
	t = newTable("tenant", "hot", "stored by living workers", "last purge")
	for _, x := range s.Tenants {
		name, purged := x.Namespace.Short(), "-"
		if x.Namespace.IsZero() {
			name = "(others)"
		}
		if x.Purged > 0 {
			purged = fmt.Sprintf("generation %d", x.Purged)
		}
		t.row(name, humanize.IBytes(uint64(x.HotBytes)), humanize.IBytes(uint64(x.StoredBytes)), purged)
	}
	return t.print(w)
}

func printVersions(w io.Writer, versions []coordinator.Version) error {
	t := newTable("version", "weights", "variant", "state", "epoch", "since")
	for _, v := range versions {
		epoch, weights := "-", v.Weights.Short()
		if v.Epoch > 0 {
			epoch = fmt.Sprint(v.Epoch)
		}
		if v.Declared {
			weights += " (declared)"
		}
		t.row(v.Label, weights, v.Variant.String(), string(v.State), epoch, when(v.Since))
	}
	return t.print(w)
}

func when(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.DateTime) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
